"""No silent hang: when a rank dies, stops or hangs, the others leave and say which one.

Every rank keeps a connection to rank 0, of its own beside those of training, over which it says
once a second where it is. Rank 0 judges, and tells all who was lost; a lost rank 0 is noticed
by its connection or its silence. The main thread may meanwhile sit in a collective operation
that never returns, so a thread ends the process, with exit code 76.

Plain sockets rather than torch's TCPStore: its client waits for ever for a server that was
stopped, and logs pages about one that died. A thread rather than a process: torch, NCCL and
safetensors leave the interpreter to other threads while they work.
"""

from __future__ import annotations

import asyncio
import os
import socket
import sys
import threading
import time
from abc import ABC, abstractmethod
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import NoReturn

import torch.distributed as dist

from t2i_hpc.common.exit_codes import LOST_RANK
from t2i_hpc.engine.stops.judgement import SILENCE_TICKS, Beat
from t2i_hpc.engine.stops.leaving import leave_at_once

TICK_SECONDS = 1.0
LAST_WORDS_SECONDS = 5.0  # how long rank 0 waits for the others at the end
_VERDICT_SECONDS = SILENCE_TICKS + 5.0
_PACKAGE = Path(__file__).resolve().parent.parent
_WAITING = ("torch/distributed/", "torch/autograd/graph.py")


class Lifeline(ABC):
    """One rank's end of it, in a thread that runs until :meth:`close`."""

    def __init__(self, rank: int) -> None:
        self._me = Beat(rank, socket.gethostname(), os.getpid())
        self._main = threading.main_thread().ident
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._work, name="lifeline", daemon=True)
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
        """Leave; first wait for the lifeline to find out whom the error is about."""
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
