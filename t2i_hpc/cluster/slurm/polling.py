"""How often Slurm is asked about jobs that a person waits for; sites lock accounts for more."""

from __future__ import annotations

import time
from dataclasses import dataclass


@dataclass(frozen=True)
class Pace:
    """Seconds between two questions: the first ones, the longest, and how they grow."""

    first: float = 10.0
    longest: float = 60.0
    growth: float = 1.5


PACE = Pace()


class Polling:
    """Says when to ask again: soon after news, then less and less often.

    Args:
        pace: the intervals; :data:`PACE` by default.
    """

    def __init__(self, pace: Pace | None = None) -> None:
        self._pace = pace or PACE
        self._interval, self._due = self._pace.first, 0.0

    def is_due(self) -> bool:
        """Whether it is time to ask."""
        return time.monotonic() >= self._due

    def asked(self, *, news: bool) -> None:
        """Note that Slurm was asked, and whether the answer was another one than before."""
        grown = min(self._interval * self._pace.growth, self._pace.longest)
        self._interval = self._pace.first if news else grown
        self._due = time.monotonic() + self._interval
