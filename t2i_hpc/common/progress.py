"""How far a long task is: a bar on a terminal, a line now and then in a log file.

It goes to standard error, so that standard output holds results alone.
"""

from __future__ import annotations

import contextlib
import datetime
import sys
import time
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import Progress

from t2i_hpc.common.output import say

_SECONDS_BETWEEN_LINES = 10.0


@contextlib.contextmanager
def progress(title: str, total: int | None, unit: str) -> Iterator[Callable[[int], None]]:
    """Show the progress of the block; it is told how many more are done.

    Args:
        title: what is being done.
        total: how many there are in all, if known.
        unit: what is counted, e.g. "images".
    """
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _Lines(title, total, unit).advance
        return
    with Progress(console=console) as bar:
        task = bar.add_task(title, total=total)
        yield lambda count: bar.advance(task, count)


class _Lines:
    """Writes one line every few seconds and one at the end."""

    def __init__(self, title: str, total: int | None, unit: str) -> None:
        self._title, self._total, self._unit = title, total, unit
        self._done = 0
        self._start = self._last = time.monotonic()

    def advance(self, count: int) -> None:
        """Count `count` more."""
        self._done += count
        now = time.monotonic()
        if now - self._last < _SECONDS_BETWEEN_LINES and self._done != self._total:
            return
        self._last = now
        of_all = "" if self._total is None else f" of {self._total:,}"
        speed = self._done / max(now - self._start, 1e-9)
        left = (self._total or 0) - self._done
        eta = f", {_shown(left / speed)} left" if left > 0 and speed else ""
        say(
            f"{self._title}: {self._done:,}{of_all} {self._unit} "
            f"({speed:,.1f} {self._unit}/s{eta})",
            sys.stderr,
        )


def _shown(seconds: float) -> str:
    return str(datetime.timedelta(seconds=round(seconds)))
