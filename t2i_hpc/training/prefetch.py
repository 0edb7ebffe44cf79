"""Batches on the device before the step that wants them.

On a GPU the next batch is copied on a stream of its own while the current step computes; the
step's stream waits for the copy, the processor never. On a CPU there is nothing to move.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch

from t2i_hpc.data.batches import Batch


def on_device(batches: Iterable[Batch], device: torch.device) -> Iterator[Batch]:
    """Yield the batches in their order with their tensors on `device`, one ahead on a GPU."""
    if device.type != "cuda":
        yield from (batch.to(device) for batch in batches)
        return
    side, ahead = torch.cuda.Stream(device), None
    for batch in batches:
        with torch.cuda.stream(side):
            moving = _Moving(batch.to(device), side.record_event())
        if ahead is not None:
            yield ahead.arrived()
        ahead = moving


@dataclass(frozen=True)
class _Moving:
    """A batch on its way, and the end of its copy."""

    batch: Batch
    copied: torch.cuda.Event

    def arrived(self) -> Batch:
        """Let the current stream wait for the copy, and keep the memory while it is in use."""
        current = torch.cuda.current_stream(self.batch.images.device)
        current.wait_event(self.copied)
        for tensor in (self.batch.images, self.batch.tokens, self.batch.lengths):
            tensor.record_stream(current)
        self.batch.classes.record_stream(current)
        return self.batch
