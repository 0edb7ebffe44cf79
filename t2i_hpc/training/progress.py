"""What a person sees while a run trains: a live line on a terminal, plain lines in a log."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from rich.console import Console
from rich.live import Live
from rich.text import Text

from t2i_hpc.common.terminal import discard, say

_PLAIN_SECONDS = 10.0
_MUCH = 0.1  # share of the time spent waiting that is worth a word


def open_progress(is_main: bool) -> ProgressLine:
    """Return the progress line that fits where the output goes."""
    if not is_main:
        return Silence()
    seen = sys.stdout is not None and sys.stdout.isatty()
    return LiveLine() if seen else PlainLines()


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
        teraflops, mfu: TFLOP/s of a device and their share of its peak; None where not known.
        fetched: bytes a second that came from a server; None: nothing comes from one.
        found: share of the samples whose shard was on the node, 0 to 1.
    """

    step: int
    images: int
    images_per_second: float
    data_wait: float
    losses: Mapping[str, float]
    share: float
    remaining: float | None
    teraflops: float | None = None
    mfu: float | None = None
    fetched: float | None = None
    found: float = 1.0

    def line(self) -> str:
        """Return the status as one line."""
        losses = "  ".join(f"{_short(name)} {value:.3f}" for name, value in self.losses.items())
        eta = "-" if self.remaining is None else format_seconds(self.remaining)
        waiting = f"  data wait {self.data_wait:.0%}{self._reading()}"
        return (
            f"{self.share:4.0%}  step {self.step:,}  images {self.images:,}  "
            f"{self.images_per_second:.1f} img/s{self._arithmetic()}  ETA {eta}{waiting}  "
            f"{losses}"
        )

    def _reading(self) -> str:
        """Return where the data comes from, and what to do where it is waited for."""
        here = "" if self.fetched is None else f", {self.fetched / 1e6:.1f} MB/s"
        here += "" if self.fetched is None else f", cache {self.found:.1%}"
        if self.data_wait <= _MUCH:
            return here
        # Shards that are late do not come sooner to more processes.
        late = self.fetched is not None and self.found < 1 - _MUCH / 10
        return f"{here} (raise data.{'connections or data.prefetch' if late else 'workers'})"

    def _arithmetic(self) -> str:
        done = "" if self.teraflops is None else f"  {self.teraflops:.3g} TFLOP/s"
        return done if self.mfu is None else f"{done}  MFU {self.mfu:.0%}"


class ProgressLine(Protocol):
    """Where statuses and messages go."""

    def show(self, status: Status) -> None:
        """Show the newest status."""

    def say(self, message: str) -> None:
        """Print a message that stays."""

    def close(self) -> None:
        """End the line."""


@dataclass(frozen=True)
class RunOutput:
    """Where a session writes: a run directory, and the line that people read."""

    folder: Path
    line: ProgressLine


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
        with _survives_closed_output():
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
        with _survives_closed_output():
            self._live.update(Text(status.line()))

    def say(self, message: str) -> None:
        """Print a message above the line."""
        with _survives_closed_output():
            self._console.print(message, markup=False)

    def close(self) -> None:
        """Leave the last status standing."""
        with _survives_closed_output():
            self._live.stop()


class Silence:
    """For the ranks that do not speak."""

    def show(self, status: Status) -> None:
        """Show nothing."""

    def say(self, message: str) -> None:
        """Say nothing."""

    def close(self) -> None:
        """Nothing to end."""


@contextlib.contextmanager
def _survives_closed_output() -> Iterator[None]:
    """Keep training though its terminal was closed or the disk of its log is full."""
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
