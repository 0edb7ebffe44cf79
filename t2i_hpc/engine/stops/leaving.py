"""Leaving a process whose main thread may never come back from where it is.

A thread that sits in a collective operation hears no signal and no exception. All that a run
keeps is whole on the disk at every instant, so that leaving without a farewell loses nothing
that was saved.
"""

from __future__ import annotations

import os
import sys
from typing import NoReturn

_SHOW_CURSOR = b"\x1b[?25h"


def leave_at_once(code: int, sentence: str = "") -> NoReturn:
    """End the process from any thread, with a sentence on standard error."""
    if sys.stdout.isatty():
        os.write(1, _SHOW_CURSOR)  # which a live line hides
    if sentence:
        os.write(2, f"{sentence}\n".encode())
    os._exit(code)
