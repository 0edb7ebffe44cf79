"""How fast a run is, and how long it waits for data."""

from __future__ import annotations

import time
from collections.abc import Iterator

from t2i_hpc.common.step import Batch


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
