"""Leaving a process whose main thread may never come back from where it is.

A thread that sits in a collective operation hears no signal and no exception. All that a run
keeps is whole on the disk at every instant, so that leaving without a farewell loses nothing
that was saved. Who has a last line to write is given a moment for it.

No silent hang: when a rank dies, stops or hangs, the others leave and say which one.

Every rank keeps a connection to rank 0, of its own beside those of training, over which it says
once a second where it is. Rank 0 judges, and tells all who was lost; a lost rank 0 is noticed
by its connection or its silence. The main thread may meanwhile sit in a collective operation
that never returns, so a thread ends the process, with exit code 76.

Plain sockets rather than torch's TCPStore: its client waits for ever for a server that was
stopped, and logs pages about one that died. A thread rather than a process: torch, NCCL and
safetensors leave the interpreter to other threads while they work.

The two kinds of ends of a heartbeat: rank 0's, which judges, and those of the other ranks.

What travels is a line of JSON a second in each direction. Rank 0 believes only who knows a secret
that the ranks share, so a stranger on the network can end no training.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import socket
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn, TypeAlias

import torch
import torch.distributed as dist

from t2i_hpc.common.errors import RunError
from t2i_hpc.common.exit_codes import LOST_RANK
from t2i_hpc.training.heartbeat_monitor import (
    DIED,
    SILENCE_TICKS,
    SILENT,
    Beat,
    HeartbeatMonitor,
    Watch,
    of_left,
    of_lost,
)

LastWords: TypeAlias = Callable[[int, str, tuple[str, ...]], None]
"""Is called with the exit code, the sentence, and the hosts of lost ranks."""

_SHOW_CURSOR = b"\x1b[?25h"
_BRIEF_SECONDS = 2.0
_last_words: list[LastWords] = []


def leave_at_once(code: int, sentence: str = "", lost_hosts: tuple[str, ...] = ()) -> NoReturn:
    """End the process from any thread, with a sentence on standard error."""
    with contextlib.suppress(OSError):  # that nobody reads it must not keep the process
        if sys.stdout is not None and sys.stdout.isatty():
            os.write(1, _SHOW_CURSOR)  # which a live line hides
    with contextlib.suppress(OSError):
        if sentence:
            os.write(2, f"{sentence}\n".encode())
    for last_words in list(_last_words):
        briefly(partial(last_words, code, sentence, lost_hosts))
    os._exit(code)


def before_leaving(last_words: LastWords) -> None:
    """Let a function be called when the process leaves at once."""
    _last_words.append(last_words)


def no_longer_before_leaving(last_words: LastWords) -> None:
    """Forget a function that :func:`before_leaving` was given."""
    with contextlib.suppress(ValueError):
        _last_words.remove(last_words)


def briefly(work: Callable[[], None]) -> None:
    """Do what must not hold up an end: a disk that does not answer is given up on."""
    thread = threading.Thread(target=work, name="last words", daemon=True)
    with contextlib.suppress(RuntimeError):  # no thread starts any more
        thread.start()
        thread.join(_BRIEF_SECONDS)


TICK_SECONDS = 1.0
LAST_WORDS_SECONDS = 5.0  # how long rank 0 waits for the others at the end
_VERDICT_SECONDS = SILENCE_TICKS + 5.0
_PACKAGE = Path(__file__).resolve().parent.parent
_WAITING = ("torch/distributed/", "torch/autograd/graph.py")


class Heartbeat(ABC):
    """One rank's end of it, in a thread that runs until :meth:`close`."""

    def __init__(self, rank: int) -> None:
        self._me = Beat(rank, socket.gethostname(), os.getpid())
        self._main = threading.main_thread().ident
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._work, name="heartbeat", daemon=True)
        self._thread.start()

    def doing(self, what: str) -> None:
        """Say what this rank begins to do; all ranks say the same things in the same order."""
        self._me = replace(self._me, mark=self._me.mark + 1, doing=what)

    def close(self, error: BaseException | None = None) -> None:
        """Take leave of the others: done, or for an error.

        An error that another rank's loss explains ends the process with that explanation.
        """
        if error is not None and came_from_others(error):
            self._explain(error)
        reason = "" if error is None else _in_words(error)
        self._me = replace(self._me, farewell=reason)
        self._closing.set()
        self._thread.join(2 * LAST_WORDS_SECONDS)

    def _explain(self, error: BaseException) -> NoReturn:
        """Leave; first wait for the heartbeat to find out whom the error is about."""
        time.sleep(_VERDICT_SECONDS)
        leave_at_once(
            LOST_RANK,
            f"{self._me.name()} lost its connection to other ranks at {self._me.doing}, though all "
            f"of them give signs of life ({_in_words(error)}): see whether the network between the "
            "nodes is well; the same command goes on from the last checkpoint",
        )

    def _beat(self) -> Beat:
        frame = sys._current_frames().get(self._main or 0)
        return replace(self._me, where=_line_of(frame), waits=_is_waiting(frame))

    def _work(self) -> None:
        asyncio.run(self._run())

    @abstractmethod
    async def _run(self) -> None:
        """Send and hear beats until :meth:`close`."""

    async def _tick(self) -> None:
        """Wait for a second, less when it is time to close."""
        end = time.monotonic() + TICK_SECONDS
        while time.monotonic() < end and not self._closing.is_set():
            await asyncio.sleep(TICK_SECONDS / 20)


def came_from_others(error: BaseException) -> bool:
    """Whether an error is what a broken collective operation raises."""
    if isinstance(error, dist.DistError):
        return True
    return type(error) is RuntimeError and any(word in str(error) for word in _BROKEN)


_BROKEN = ("gloo", "NCCL", "Connection closed by peer", "Connection reset", "Broken pipe")


def _in_words(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _line_of(frame: FrameType | None) -> str:
    """Return file and line of the project's innermost function that runs in `frame`."""
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if path.is_relative_to(_PACKAGE):
            return f"{path.relative_to(_PACKAGE)}:{frame.f_lineno}"
        frame = frame.f_back
    return ""


def _is_waiting(frame: FrameType | None) -> bool:
    return frame is not None and any(part in frame.f_code.co_filename for part in _WAITING)


class Hub(Heartbeat):
    """Rank 0: hears all ranks, judges, and tells them.

    Args:
        size: number of ranks.
        timeout: seconds without progress after which a rank is taken for hanging.
    """

    def __init__(self, size: int, timeout: float) -> None:
        self.socket = _listener()
        self.secret = secrets.randbits(62)
        self._judge = HeartbeatMonitor(size, timeout)
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


class Spoke(Heartbeat):
    """Any other rank: tells rank 0 where it is, and hears who was lost.

    Args:
        rank: this one.
        address, port: of rank 0's heartbeat.
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


def start_heartbeat(
    rank: int, size: int, address: str, timeout: float, control: dist.ProcessGroup
) -> Heartbeat:
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
