"""How much memory a training takes.

How fast a run is, and how long it waits for data.

What a person sees while a run trains: a live line on a terminal, plain lines in a log.

Where a session writes and speaks.
"""

from __future__ import annotations

import contextlib
import resource
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from rich.console import Console
from rich.live import Live
from rich.text import Text

from t2i_hpc.common.terminal import discard, say
from t2i_hpc.data.batches import Batch


def peak_memory(device: torch.device) -> float:
    """Return this process's largest memory so far in GB (10⁹ bytes).

    On a GPU that of all tensors together, else what was resident of the whole process.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


class Meter:
    """Speed and share of waiting since it was last read."""

    def __init__(self, batch_size: int) -> None:
        self.batch_size = batch_size
        self._mark = self._start = time.monotonic()
        self._waited = 0.0
        self._steps = 0

    def waited(self, seconds: float) -> None:
        """Count time spent waiting for a batch."""
        self._waited += seconds

    def step_done(self) -> float:
        """Count a step; return the seconds since the one before."""
        now = time.monotonic()
        seconds, self._mark = now - self._mark, now
        self._steps += 1
        return seconds

    def read(self) -> tuple[float, float]:
        """Return (images per second, share of waiting) and start anew."""
        elapsed = max(1e-9, time.monotonic() - self._start)
        result = self._steps * self.batch_size / elapsed, min(1.0, self._waited / elapsed)
        self._start, self._waited, self._steps = time.monotonic(), 0.0, 0
        return result


def timed(batches: Iterator[Batch], meter: Meter) -> Iterator[Batch]:
    """Pass batches on and tell the meter how long each was waited for."""
    while True:
        start = time.monotonic()
        batch = next(batches, None)
        if batch is None:
            return
        meter.waited(time.monotonic() - start)
        yield batch


_PLAIN_SECONDS = 10.0


@dataclass(frozen=True)
class Status:
    """One moment of a run.

    Attributes:
        step, images: done so far, over all sessions.
        images_per_second: over the last interval.
        data_wait: share of the time spent waiting for data, 0 to 1.
        losses: by ``phase/term``.
        share: part of the whole training that is done, 0 to 1.
        remaining: seconds to the end as far as known, else None.
    """

    step: int
    images: int
    images_per_second: float
    data_wait: float
    losses: Mapping[str, float]
    share: float
    remaining: float | None

    def line(self) -> str:
        """Return the status as one line."""
        losses = "  ".join(f"{_short(name)} {value:.3f}" for name, value in self.losses.items())
        eta = "-" if self.remaining is None else format_seconds(self.remaining)
        waiting = f"  data wait {self.data_wait:.0%}"
        advice = " (raise data.workers)" if self.data_wait > 0.1 else ""
        return (
            f"{self.share:4.0%}  step {self.step:,}  images {self.images:,}  "
            f"{self.images_per_second:.1f} img/s  ETA {eta}{waiting}{advice}  {losses}"
        )


class ProgressLine(Protocol):
    """Where statuses and messages go."""

    def show(self, status: Status) -> None:
        """Show the newest status."""

    def say(self, message: str) -> None:
        """Print a message that stays."""

    def close(self) -> None:
        """End the line."""


class PlainLines:
    """Lines for logs, at most one in ten seconds."""

    def __init__(self) -> None:
        self._last = float("-inf")

    def show(self, status: Status) -> None:
        """Print the status if the last one is old enough."""
        if time.monotonic() - self._last >= _PLAIN_SECONDS:
            self._last = time.monotonic()
            self.say(status.line())

    def say(self, message: str) -> None:
        """Print a message."""
        with _heard_or_not():
            say(message)

    def close(self) -> None:
        """Nothing to end."""


class LiveLine:
    """One line that is redrawn in place."""

    def __init__(self) -> None:
        self._console = Console(highlight=False)
        self._live = Live(console=self._console, refresh_per_second=4, transient=False)
        self._live.start()

    def show(self, status: Status) -> None:
        """Redraw the line."""
        with _heard_or_not():
            self._live.update(Text(status.line()))

    def say(self, message: str) -> None:
        """Print a message above the line."""
        with _heard_or_not():
            self._console.print(message, markup=False)

    def close(self) -> None:
        """Leave the last status standing."""
        with _heard_or_not():
            self._live.stop()


class Silence:
    """For the ranks that do not speak."""

    def show(self, status: Status) -> None:
        """Show nothing."""

    def say(self, message: str) -> None:
        """Say nothing."""

    def close(self) -> None:
        """Nothing to end."""


def open_progress(is_main: bool) -> ProgressLine:
    """Return the progress line that fits where the output goes."""
    if not is_main:
        return Silence()
    seen = sys.stdout is not None and sys.stdout.isatty()
    return LiveLine() if seen else PlainLines()


@contextlib.contextmanager
def _heard_or_not() -> Iterator[None]:
    """Let no training end of it that its terminal was closed or the disk of its log is full."""
    try:
        yield
    except OSError:
        discard(sys.stdout)


def format_seconds(seconds: float) -> str:
    """Return e.g. 1:02:03 or 2:03."""
    hours, rest = divmod(round(max(0.0, seconds)), 3600)
    minutes, rest = divmod(rest, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _short(name: str) -> str:
    """Return e.g. d64.real for discriminator64/real."""
    phase, _, term = name.partition("/")
    number = phase[len(phase.rstrip("0123456789")) :]
    return f"{phase[:1]}{number}.{term}"


@dataclass(frozen=True)
class RunFiles:
    """A run directory and the line that tells people about it."""

    folder: Path
    line: ProgressLine
