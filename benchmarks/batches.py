"""Random batches, for benchmarks whose time does not depend on what images show."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.step import Size
from t2i_hpc.common.step import Batch, System

_VOCABULARY, _WORDS = 5450, 18  # CUB


def random_batch(size: Size, system: System, device: torch.device) -> tuple[Batch, Tensor]:
    """Return images and captions of `size` and noise (B, noise width) for `system`."""
    sides = (size.resolution, size.resolution)
    batch = Batch(
        torch.randint(0, 256, (size.batch, 3, *sides), dtype=torch.uint8),
        torch.randint(1, _VOCABULARY, (size.batch, _WORDS)),
        torch.full((size.batch,), _WORDS),
        torch.arange(size.batch),
        torch.arange(size.batch),
    )
    return batch.to(device), torch.randn(size.batch, system.noise_width).to(device)
