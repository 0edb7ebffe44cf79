"""No silent hang: when a rank dies, stops or hangs, the others exit and name it.

Every rank keeps a connection to rank 0, of its own beside those of training, and reports once a
second where it is. Rank 0 runs the heartbeat monitor and tells all who is lost; a lost rank 0 is
noticed by its closed connection or its silence. The main thread may meanwhile sit in a collective
that never returns, so a thread ends the process, with exit code 76.

Plain sockets rather than torch's TCPStore: its client waits for ever for a server that was
stopped, and logs pages about one that died. A thread rather than a process: torch, NCCL and
safetensors release the interpreter while they work.

Where ranks compute on GPUs the report also says how far the device is (``heartbeat_device.py``).
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
from dataclasses import asdict, replace
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import torch
import torch.distributed as dist

from t2i_hpc.common.errors import LOST_RANK, RunError
from t2i_hpc.common.process import exit_at_once
from t2i_hpc.training.heartbeat_device import DeviceClock
from t2i_hpc.training.heartbeat_monitor import (
    DIED,
    SILENCE_TICKS,
    SILENT,
    HeartbeatMonitor,
    RankReport,
    RankState,
    failed_rank,
    lost_ranks,
)

TICK_SECONDS = 1.0
CLOSE_SECONDS = 5.0  # how long rank 0 waits for the others at the end
_MONITOR_SECONDS = SILENCE_TICKS + 5.0  # until the monitor has found whoever is lost
_PACKAGE = Path(__file__).resolve().parent.parent
_COLLECTIVES = ("torch/distributed/", "torch/autograd/graph.py")
_BROKEN = ("gloo", "NCCL", "Connection closed by peer", "Connection reset", "Broken pipe")


def start_heartbeat(
    rank: int,
    size: int,
    address: str,
    timeout: float,
    control: dist.ProcessGroup,
    *,
    clock: DeviceClock | None = None,
) -> Heartbeat:
    """Connect this rank with the others; a collective call.

    Args:
        rank, size: of this process and of all.
        address: where rank 0 is reached.
        timeout: seconds without progress after which a rank is taken for hung.
        control: a group of CPU ranks.
        clock: of this rank's device; None on a CPU.
    """
    server = HeartbeatServer(size, timeout, clock) if rank == 0 else None
    numbers = torch.tensor([server.port, server.secret] if server else [0, 0])
    dist.broadcast(numbers, 0, group=control)
    port, secret = numbers.tolist()
    return server or HeartbeatClient(rank, address, port, secret, timeout, clock=clock)


def is_broken_collective(error: BaseException) -> bool:
    """Whether an error is what a collective raises that another rank broke off."""
    if isinstance(error, dist.DistError):
        return True
    return type(error) is RuntimeError and any(sign in str(error) for sign in _BROKEN)


class Heartbeat(ABC):
    """One rank's end of it, in a thread that runs until :meth:`close`."""

    def __init__(self, rank: int, clock: DeviceClock | None) -> None:
        self._clock = clock
        self._own = RankReport(rank, socket.gethostname(), os.getpid())
        self._main = threading.main_thread().ident
        self._closing = threading.Event()
        self._thread = threading.Thread(
            target=lambda: asyncio.run(self._run()), name="heartbeat", daemon=True
        )
        self._thread.start()

    def set_stage(self, stage: str) -> None:
        """Say what this rank begins to do; all ranks say the same things in the same order."""
        self._own = replace(self._own, stages=self._own.stages + 1, stage=stage)
        self.mark_device(stage)

    def mark_device(self, stage: str) -> None:
        """Leave a mark in the device's queue, that the device has come to `stage`."""
        if self._clock is not None:
            self._clock.mark(stage)

    def close(self, error: BaseException | None = None) -> None:
        """Tell the others that this rank exits: done, or for an error.

        An error that another rank's loss explains ends the process with that explanation.
        """
        if error is not None and is_broken_collective(error):
            self._explain(error)
        reason = "" if error is None else _first_line(error)
        self._own = replace(self._own, exit_reason=reason)
        self._closing.set()
        self._thread.join(2 * CLOSE_SECONDS)

    def _explain(self, error: BaseException) -> NoReturn:
        """Exit; first wait for the monitor to find out whom the error is about."""
        time.sleep(_MONITOR_SECONDS)
        exit_at_once(
            LOST_RANK,
            f"{self._own.name()} lost its connection to other ranks at {self._own.stage}, though "
            f"all of them give signs of life ({_first_line(error)}): check the network between "
            "the nodes; the same command resumes from the last checkpoint",
        )

    def _report(self) -> RankReport:
        frame = sys._current_frames().get(self._main or 0)
        report = replace(self._own, where=_line_of(frame), waits=_is_waiting(frame))
        if self._clock is None:
            return report
        device = self._clock.read()
        return replace(report, queued=device.queued, done=device.done, device_stage=device.stage)

    @abstractmethod
    async def _run(self) -> None:
        """Send and receive reports until :meth:`close`."""

    async def _tick(self) -> None:
        """Wait for a second, less when it is time to close."""
        end = time.monotonic() + TICK_SECONDS
        while time.monotonic() < end and not self._closing.is_set():
            await asyncio.sleep(TICK_SECONDS / 20)


class HeartbeatServer(Heartbeat):
    """Rank 0: receives all ranks' reports, finds who is lost, and tells them.

    Args:
        size: number of ranks.
        timeout: seconds without progress after which a rank is taken for hung.
        clock: of this rank's device; None on a CPU.
    """

    def __init__(self, size: int, timeout: float, clock: DeviceClock | None = None) -> None:
        self.socket = _listener()
        self.secret = secrets.randbits(62)
        self.monitor = HeartbeatMonitor(size, timeout)
        self._others: list[asyncio.StreamWriter] = []
        super().__init__(0, clock)

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self.socket.getsockname()[1])

    async def _run(self) -> None:
        server = await asyncio.start_server(self._receive, sock=self.socket)
        while not self._closing.is_set():
            await self._tick()
            self.monitor.ranks[0].update(self._report())
            lost = self.monitor.tick()
            self._send(lost)
            if lost:
                await asyncio.sleep(TICK_SECONDS)  # the others read it before they miss rank 0
                exit_at_once(LOST_RANK, f"t2i_hpc: {lost}", self.monitor.lost_hosts)
        await self._outlast_others()
        server.close()

    async def _receive(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Read the reports of one rank, once it knows the secret, to the end."""
        state: RankState | None = None
        try:
            while line := await reader.readline():
                message = json.loads(line)
                if message.pop("secret") != self.secret:
                    break
                report = RankReport(**message)
                if state is None:
                    state = self.monitor.ranks[report.rank]
                    self._others.append(writer)
                state.update(report)
        except (OSError, ValueError, TypeError, KeyError, AttributeError, IndexError):
            pass  # no rank, or one that was cut off
        finally:
            if state is not None:
                state.disconnected = True
            writer.close()

    def _send(self, lost: str | None = None, over: bool = False) -> None:
        message = {"report": asdict(self._report()), "lost": lost, "over": over}
        for writer in self._others:
            if not writer.is_closing():
                writer.write(json.dumps(message).encode() + b"\n")

    async def _outlast_others(self) -> None:
        """Stay until the others exit, some time at most; then say that it is over."""
        reason = self._own.exit_reason
        end = time.monotonic() + (3 * TICK_SECONDS if reason else CLOSE_SECONDS)
        while time.monotonic() < end and not self.monitor.all_exited(but=0):
            await asyncio.sleep(TICK_SECONDS / 20)
        self._send(failed_rank(self._report()) if reason else None, over=True)
        await asyncio.sleep(TICK_SECONDS / 20)


class HeartbeatClient(Heartbeat):
    """Any other rank: reports to rank 0, and hears who is lost.

    Args:
        rank: this one.
        address, port: of rank 0's heartbeat.
        secret: that rank 0 made up.
        timeout: seconds to try to connect for.
        clock: of this rank's device; None on a CPU.
    """

    def __init__(
        self,
        rank: int,
        address: str,
        port: int,
        secret: int,
        timeout: float,
        *,
        clock: DeviceClock | None = None,
    ) -> None:
        self._socket = _connection(rank, address, port, timeout)
        self._secret = secret
        self._rank_0 = RankState(RankReport(0, address))
        self._over = False
        super().__init__(rank, clock)

    async def _run(self) -> None:
        reader, writer = await asyncio.open_connection(sock=self._socket)
        receiving = asyncio.create_task(self._receive(reader))
        while not self._closing.is_set() and not self._over:
            self._send(writer)
            await self._tick()
            self._rank_0.tick()
            if self._rank_0.disconnected:
                self._lose_rank_0(DIED)
            if self._rank_0.silent > SILENCE_TICKS:
                self._lose_rank_0(SILENT)
        self._send(writer)
        with contextlib.suppress(OSError, RuntimeError):  # rank 0 may have exited before
            writer.write_eof()
        await asyncio.wait({receiving}, timeout=TICK_SECONDS)  # until rank 0 has read it
        writer.close()

    def _send(self, writer: asyncio.StreamWriter) -> None:
        if not writer.is_closing():
            report = asdict(self._report())
            writer.write(json.dumps({**report, "secret": self._secret}).encode() + b"\n")

    async def _receive(self, reader: asyncio.StreamReader) -> None:
        try:
            while line := await reader.readline():
                message: dict[str, Any] = json.loads(line)
                self._rank_0.update(RankReport(**message["report"]))
                if message["lost"]:
                    exit_at_once(LOST_RANK)  # rank 0 says it for all
                self._over = self._over or message["over"]
        except OSError:
            pass  # cut off
        self._rank_0.disconnected = not self._over

    def _lose_rank_0(self, how: str) -> NoReturn:
        exit_at_once(LOST_RANK, f"t2i_hpc: {lost_ranks([self._rank_0.report], how)}")


def _first_line(error: BaseException) -> str:
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
    return frame is not None and any(part in frame.f_code.co_filename for part in _COLLECTIVES)


def _listener() -> socket.socket:
    if socket.has_dualstack_ipv6():
        return socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True)
    return socket.create_server(("", 0))


def _connection(rank: int, address: str, port: int, timeout: float) -> socket.socket:
    try:
        connection = socket.create_connection((address, port), timeout)
    except OSError as error:
        raise RunError(
            f"rank {rank} on {socket.gethostname()} does not reach rank 0 at {address}:{port} "
            f"({error}): let the nodes of a job connect to each other on every port"
        ) from error
    connection.setblocking(False)
    return connection
