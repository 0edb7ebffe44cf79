"""Tensors as they are now, apart from what training does to them next."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def take_snapshot(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return contiguous copies on the CPU.

    From a GPU they come through pinned memory, all at once, and the call waits for the last:
    then the optimiser may go on. torch keeps pinned memory that is given back, so later
    snapshots find theirs.
    """
    copies = {name: _copy(value.detach()) for name, value in tensors.items()}
    for device in {value.device for value in tensors.values() if value.is_cuda}:
        torch.cuda.current_stream(device).synchronize()
    return copies


def size_in_bytes(*groups: Mapping[str, Tensor]) -> int:
    """Return how many bytes the numbers of the tensors take."""
    return sum(value.nbytes for tensors in groups for value in tensors.values())


def _copy(value: Tensor) -> Tensor:
    copy = torch.empty(value.shape, dtype=value.dtype, pin_memory=value.is_cuda)
    return copy.copy_(value, non_blocking=True)
