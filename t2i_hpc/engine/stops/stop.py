"""Requests to stop or to save: signals, and files that a person puts into the run directory.

A handler only raises a flag; the loop looks at it between steps, all ranks agree, and then
the checkpoint is written. Saving inside a handler hangs in collectives. A second Ctrl-C
leaves at once, even from a collective that never returns: a thread of its own hears it.

``touch RUN/stop`` stops like a signal, ``touch RUN/save`` saves once. Either file is deleted
when it is obeyed; one that was left by a session that ended before is obeyed by the next.
"""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from t2i_hpc.common.exit_codes import INTERRUPTED, STOPPED
from t2i_hpc.common.stop_signals import STOP_SIGNALS, heeded_signals
from t2i_hpc.engine.stops.leaving import leave_at_once

STOPPED_EXIT_CODE = STOPPED

_LOOK_SECONDS = 1.0


class StopRequest:
    """Whether a signal asked this process to stop, and which."""

    def __init__(self) -> None:
        self.reason: str | None = None
        self._process = os.getpid()

    @property
    def requested(self) -> bool:
        """Whether there was a signal."""
        return self.reason is not None

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal."""
        if os.getpid() != self._process:
            return  # a loader process inherited the handler; the parent decides
        self.reason = self.reason or signal.Signals(number).name


class RequestFiles:
    """The files ``stop`` and ``save`` of a run directory, looked at once a second at most."""

    def __init__(self, folder: Path) -> None:
        self._stop, self._save = folder / "stop", folder / "save"
        self._looked = float("-inf")
        self.stop = self.save = False

    def look(self) -> None:
        """Notice the files that are there, and delete them."""
        if time.monotonic() - self._looked < _LOOK_SECONDS:
            return
        self._looked = time.monotonic()
        self.stop = _taken(self._stop) or self.stop
        self.save = _taken(self._save) or self.save


@contextmanager
def listening() -> Iterator[StopRequest]:
    """Turn stop signals into a flag inside the block; a second SIGINT ends the process.

    Who started the process may have held them back until now: those that came are obeyed.
    """
    request = StopRequest()
    before = {number: signal.signal(number, request) for number in heeded_signals()}
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
    try:
        with _second_interrupt_leaves():
            yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _second_interrupt_leaves() -> Iterator[None]:
    """Hear signals in a thread: Python's handlers wait for the main thread, this does not."""
    heard, told = socket.socketpair()
    told.setblocking(False)
    before = signal.set_wakeup_fd(told.fileno(), warn_on_full_buffer=False)
    threading.Thread(target=_count_interrupts, args=(heard,), name="signals", daemon=True).start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        told.close()


def _count_interrupts(heard: socket.socket) -> None:
    interrupts = 0
    with heard:
        while numbers := heard.recv(64):
            interrupts += numbers.count(signal.SIGINT)
            if interrupts > 1:
                leave_at_once(INTERRUPTED, "interrupted again: leaving without a save")


def _taken(path: Path) -> bool:
    try:
        path.unlink()
    except OSError:  # not there, nearly always
        return False
    return True
