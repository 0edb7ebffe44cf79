"""Random numbers as pure functions of (seed, purpose, index).

Nothing that decides a result may depend on how many ranks or workers share the work, so
every random choice is drawn from its own small generator, keyed by what it is for. Noise is
drawn on the CPU: CUDA generators differ between GPU models. torch is imported where it is needed:
builds of shards have no use for it.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch

_MASK = (1 << 64) - 1


def generator(seed: int, purpose: str, index: int) -> np.random.Generator:
    """Return the generator of item number `index` for `purpose` (Philox, counter-based)."""
    purpose_key = zlib.crc32(purpose.encode())
    key = np.array([seed & _MASK, (purpose_key << 1) & _MASK], dtype=np.uint64)
    counter = np.array([0, 0, 0, index & _MASK], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=counter))


def noise(seed: int, purpose: str, indices: Iterable[int], width: int) -> torch.Tensor:
    """Draw standard normal noise, one row an index: float32 (len(indices), width) on the CPU."""
    import torch

    rows = [
        generator(seed, purpose, index).standard_normal(width, dtype=np.float32)
        for index in indices
    ]
    return torch.from_numpy(np.stack(rows)) if rows else torch.empty(0, width)


def seed_step(seed: int, images_seen: int) -> None:
    """Seed torch's own generators for the step that starts at `images_seen`, on all ranks alike."""
    import torch

    value = generator(seed, "step", images_seen).integers(1 << 62)
    torch.manual_seed(int(value))
