"""Leaving a process whose main thread may never come back from where it is.

A thread that sits in a collective operation hears no signal and no exception. All that a run
keeps is whole on the disk at every instant, so that leaving without a farewell loses nothing
that was saved. Who has a last line to write is given a moment for it.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Callable
from functools import partial
from typing import NoReturn, TypeAlias

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
