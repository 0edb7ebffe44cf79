"""Reasons to stop: signals and the time limit.

A handler only raises a flag; the loop looks at it between steps, all ranks agree, and then
the checkpoint is written. Saving inside a handler hangs in collectives. A second Ctrl-C
leaves at once.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
STOPPED_EXIT_CODE = 75
"""Exit code of a run that was asked to stop and saved (EX_TEMPFAIL: try again later)."""


class StopRequest:
    """Whether a signal asked this process to stop."""

    def __init__(self) -> None:
        self.requested = False
        self._process = os.getpid()

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal."""
        if os.getpid() != self._process:
            return  # a loader process inherited the handler; the parent decides
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.requested = True


@contextmanager
def listening() -> Iterator[StopRequest]:
    """Turn stop signals into a flag inside the block."""
    request = StopRequest()
    before = {number: signal.signal(number, request) for number in SIGNALS}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
