"""How long work shows how far it is: a bar on a terminal, plain lines in a log file."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

Report = Callable[[int, int], None]
"""Called with (done, total)."""

SECONDS_BETWEEN_LINES = 10.0


def silent(done: int, total: int) -> None:
    """Report nothing."""


@contextmanager
def progress_line(title: str) -> Iterator[Report]:
    """Give a function to call with (done, total) after each piece of work; writes to stderr."""
    if not sys.stderr.isatty():
        yield _plain_lines(title)
        return
    columns = (TextColumn(title), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(title)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _plain_lines(title: str) -> Report:
    latest = time.monotonic()

    def report(done: int, total: int) -> None:
        nonlocal latest
        if time.monotonic() - latest >= SECONDS_BETWEEN_LINES:
            latest = time.monotonic()
            print(f"{title}: {done:,} of {total:,}", file=sys.stderr, flush=True)

    return report
