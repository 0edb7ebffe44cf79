"""What is written for people: lines, tables, and the progress of a long task.

That nobody reads it any more ends no work: the reader of a pipe may leave (``| head``), a terminal
may be closed. Progress goes to standard error, so that standard output holds results alone.
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import os
import sys
import time
from collections.abc import Callable, Container, Iterator, Sequence
from importlib import import_module
from typing import TextIO

from rich.console import Console
from rich.progress import Progress

_NO_READER = (errno.EPIPE, errno.EIO)  # of a pipe, of a terminal
_SECONDS_BETWEEN_LINES = 10.0


def say(text: object, stream: TextIO | None = None) -> None:
    """Print a line on standard output, or on `stream`, at once.

    Raises:
        OSError: it cannot be written, other than for want of a reader.
    """
    stream = stream or sys.stdout
    if stream is None:  # closed by who started the process
        return
    try:
        print(text, file=stream, flush=True)
    except OSError as error:
        if error.errno not in _NO_READER:
            raise
        discard(stream)


def say_in_log(sentence: str) -> None:
    """Print a sentence of ours on standard error, which in a job's log others write as well."""
    say(f"t2i_hpc: {sentence}", sys.stderr)


def discard(stream: TextIO) -> None:
    """Let all that is written to `stream`, and what waits in it, go nowhere from now on."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


def aligned(
    rows: Sequence[Sequence[str]], right: Container[int] = (), between: str = "  "
) -> list[str]:
    """Return rows as lines with aligned columns, plain text for terminals, pipes and logs.

    Args:
        rows: of equal length; the first are the titles.
        right: numbers of the columns that are set flush right.
        between: what stands between columns.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        between.join(
            cell.rjust(width) if place in right else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    return [line.rstrip() for line in lines] if between.isspace() else lines


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


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers' reports to itself: what matters is said by our errors."""
    logging = import_module("transformers.utils.logging")
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
