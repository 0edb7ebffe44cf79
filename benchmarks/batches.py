"""Random batches, for benchmarks whose time does not depend on what images show."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from t2i_hpc.data.batches import Batch
from t2i_hpc.systems.base import System

VOCABULARY, TOKENS = 5450, 18  # CUB


@dataclass(frozen=True)
class Size:
    """What is measured: networks of `width` at `resolution` px, on `batch` images."""

    width: int = 64
    resolution: int = 256
    batch: int = 4
    damsm: bool = True
    mask_width: int = 100
    schedule: str = "two_steps"


def random_batch(size: Size, system: System, device: torch.device) -> tuple[Batch, Tensor]:
    """Return images and captions of `size` and noise (B, noise width) for `system`."""
    sides = (size.resolution, size.resolution)
    batch = Batch(
        torch.randint(0, 256, (size.batch, 3, *sides), dtype=torch.uint8),
        torch.randint(1, VOCABULARY, (size.batch, TOKENS)),
        torch.full((size.batch,), TOKENS),
        torch.arange(size.batch),
        torch.arange(size.batch),
    )
    return batch.to(device), torch.randn(size.batch, system.noise_width).to(device)
