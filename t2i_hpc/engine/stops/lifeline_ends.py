"""The two kinds of ends of a lifeline: rank 0's, which judges, and those of the other ranks.

What travels is a line of JSON a second in each direction. Rank 0 believes only who knows a secret
that the ranks share, so a stranger on the network can end no training.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
import socket
import time
from dataclasses import asdict
from typing import Any, NoReturn

import torch
import torch.distributed as dist

from t2i_hpc.common.errors import RunError
from t2i_hpc.common.exit_codes import LOST_RANK
from t2i_hpc.engine.stops.judgement import (
    DIED,
    SILENCE_TICKS,
    SILENT,
    Beat,
    Judge,
    Watch,
    of_left,
    of_lost,
)
from t2i_hpc.engine.stops.leaving import leave_at_once
from t2i_hpc.engine.stops.lifeline import LAST_WORDS_SECONDS, TICK_SECONDS, Lifeline


class Hub(Lifeline):
    """Rank 0: hears all ranks, judges, and tells them.

    Args:
        size: number of ranks.
        timeout: seconds without progress after which a rank is taken for hanging.
    """

    def __init__(self, size: int, timeout: float) -> None:
        self.socket = _listener()
        self.secret = secrets.randbits(62)
        self._judge = Judge(size, timeout)
        self._others: list[asyncio.StreamWriter] = []
        super().__init__(0)

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self.socket.getsockname()[1])

    async def _run(self) -> None:
        server = await asyncio.start_server(self._listen, sock=self.socket)
        while not self._closing.is_set():
            await self._tick()
            self._judge.watches[0].hear(self._beat())
            verdict = self._judge.tick()
            self._tell(verdict=verdict)
            if verdict:
                await self._end(verdict)
        await self._take_leave()
        server.close()

    async def _listen(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Hear one rank, once it knows the secret, to the end."""
        watch: Watch | None = None
        try:
            while line := await reader.readline():
                said = json.loads(line)
                if said.pop("secret") != self.secret:
                    break
                beat = Beat(**said)
                if watch is None:
                    watch = self._judge.watches[beat.rank]
                    self._others.append(writer)
                watch.hear(beat)
        except (OSError, ValueError, TypeError, KeyError, AttributeError, IndexError):
            pass  # no rank, or one that was cut off
        finally:
            if watch is not None:
                watch.gone = True
            writer.close()

    def _tell(self, verdict: str | None = None, over: bool = False) -> None:
        line = {"beat": asdict(self._beat()), "verdict": verdict, "over": over}
        for writer in self._others:
            if not writer.is_closing():
                writer.write(json.dumps(line).encode() + b"\n")

    async def _end(self, verdict: str) -> NoReturn:
        await asyncio.sleep(TICK_SECONDS)  # the others shall read it before they miss rank 0
        leave_at_once(LOST_RANK, f"t2i_hpc: {verdict}", self._judge.accused)

    async def _take_leave(self) -> None:
        """Stay until the others left, some time at most; then say that it is over."""
        reason = self._me.farewell
        seconds = 3 * TICK_SECONDS if reason else LAST_WORDS_SECONDS
        end = time.monotonic() + seconds
        while time.monotonic() < end and not self._judge.all_left(but=0):
            await asyncio.sleep(TICK_SECONDS / 20)
        self._tell(of_left(self._beat()) if reason else None, over=True)
        await asyncio.sleep(TICK_SECONDS / 20)


class Spoke(Lifeline):
    """Any other rank: tells rank 0 where it is, and hears who was lost.

    Args:
        rank: this one.
        address, port: of rank 0's lifeline.
        secret: that rank 0 made up.
        patience: seconds to try to connect for.
    """

    def __init__(self, rank: int, address: str, port: int, secret: int, patience: float) -> None:
        self._socket = _connection(rank, address, port, patience)
        self._secret = secret
        self._hub = Watch(Beat(0, address))
        self._over = False
        super().__init__(rank)

    async def _run(self) -> None:
        reader, writer = await asyncio.open_connection(sock=self._socket)
        hearing = asyncio.create_task(self._hear(reader))
        while not self._closing.is_set() and not self._over:
            self._say(writer)
            await self._tick()
            self._hub.tick()
            if self._hub.gone:
                self._lose(DIED)
            if self._hub.silent > SILENCE_TICKS:
                self._lose(SILENT)
        self._say(writer)
        with contextlib.suppress(OSError, RuntimeError):  # rank 0 may have left before
            writer.write_eof()
        await asyncio.wait({hearing}, timeout=TICK_SECONDS)  # until rank 0 has read it
        writer.close()

    def _say(self, writer: asyncio.StreamWriter) -> None:
        if not writer.is_closing():
            beat = asdict(self._beat())
            writer.write(json.dumps({**beat, "secret": self._secret}).encode() + b"\n")

    async def _hear(self, reader: asyncio.StreamReader) -> None:
        try:
            while line := await reader.readline():
                said: dict[str, Any] = json.loads(line)
                self._hub.hear(Beat(**said["beat"]))
                if said["verdict"]:
                    leave_at_once(LOST_RANK)  # rank 0 says it for all
                self._over = self._over or said["over"]
        except OSError:
            pass  # cut off
        self._hub.gone = not self._over

    def _lose(self, how: str) -> NoReturn:
        leave_at_once(LOST_RANK, f"t2i_hpc: {of_lost([self._hub], how)}")


def tie_lifeline(
    rank: int, size: int, address: str, timeout: float, control: dist.ProcessGroup
) -> Lifeline:
    """Connect this rank with the others; a collective call.

    Args:
        rank, size: of this process and of all.
        address: where rank 0 is reached.
        timeout: seconds without progress after which a rank is taken for hanging.
        control: a group of CPU ranks.
    """
    hub = Hub(size, timeout) if rank == 0 else None
    words = torch.tensor([hub.port, hub.secret] if hub else [0, 0])
    dist.broadcast(words, 0, group=control)
    port, secret = words.tolist()
    return hub or Spoke(rank, address, port, secret, timeout)


def _listener() -> socket.socket:
    if socket.has_dualstack_ipv6():
        return socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True)
    return socket.create_server(("", 0))


def _connection(rank: int, address: str, port: int, patience: float) -> socket.socket:
    try:
        made = socket.create_connection((address, port), patience)
    except OSError as error:
        raise RunError(
            f"rank {rank} on {socket.gethostname()} does not reach rank 0 at {address}:{port} "
            f"({error}): let the nodes of a job connect to each other on every port"
        ) from error
    made.setblocking(False)
    return made
