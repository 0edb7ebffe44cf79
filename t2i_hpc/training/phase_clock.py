"""How long each phase of a step takes on the device itself, found without waiting for it.

On a GPU events are left in its queue between phases; they are read once the GPU has passed all of
a step's, a step or more later. On a CPU the host's own clock tells.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from contextlib import AbstractContextManager
from itertools import pairwise
from typing import Any, Protocol

import torch
from torch.profiler import record_function

SHARED, EMA = "shared", "ema"
_MOST_PENDING = 64  # steps; more are in no launch queue


class _Event(Protocol):
    def query(self) -> bool:
        """Whether the device has passed it."""

    def elapsed_time(self, end: Any) -> float:
        """Return the milliseconds from here to `end`, which must be passed."""


class _HostEvent:
    """The host's clock, as an event that is passed at once."""

    def __init__(self) -> None:
        self._seconds = time.perf_counter()

    def query(self) -> bool:
        return True

    def elapsed_time(self, end: _HostEvent) -> float:
        return 1000 * (end._seconds - self._seconds)


class PhaseClock:
    """Milliseconds of each part of a step, averaged over the steps since the last reading.

    The parts are ``shared`` (what phases share: features of captions, fakes), every phase by its
    name, with its optimizer step, and ``ema``.

    Attributes:
        annotates: give each part its name in a torch trace; costs time.
    """

    def __init__(self, device: torch.device) -> None:
        self.annotates = False
        self._on_gpu = device.type == "cuda"
        self._step: list[tuple[str, _Event]] = []
        self._pending: deque[Sequence[tuple[str, _Event]]] = deque(maxlen=_MOST_PENDING)
        self._sums: dict[str, float] = {}
        self._steps = 0
        self._annotation: AbstractContextManager[object] | None = None

    def start(self, part: str) -> None:
        """Begin a part of a step, and end the one before."""
        self._end_annotation()
        self._step.append((part, self._mark()))
        if self.annotates:
            self._annotation = record_function(part)
            self._annotation.__enter__()

    def end_step(self) -> None:
        """End the step and its last part."""
        self.start("")
        self._end_annotation()
        self._pending.append(self._step)
        self._step = []
        self._collect()

    def read(self) -> dict[str, float]:
        """Return the means of the steps that the device has finished, and start anew."""
        self._collect()
        means = {part: total / self._steps for part, total in self._sums.items()}
        self._sums, self._steps = {}, 0
        return means

    def _collect(self) -> None:
        while self._pending and self._pending[0][-1][1].query():
            step = self._pending.popleft()
            for (part, begin), (_, end) in pairwise(step):
                self._sums[part] = self._sums.get(part, 0.0) + begin.elapsed_time(end)
            self._steps += 1

    def _mark(self) -> _Event:
        if not self._on_gpu:
            return _HostEvent()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _end_annotation(self) -> None:
        if self._annotation is not None:
            self._annotation.__exit__(None, None, None)
            self._annotation = None
