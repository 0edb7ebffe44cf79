"""Random numbers as pure functions of (seed, purpose, index).

Nothing that decides a result may depend on how many ranks or workers share the work, so
every random choice is drawn from its own small generator, keyed by what it is for. Noise is
drawn on the CPU: CUDA generators differ between GPU models. torch is imported where it is needed:
builds of shards have no use for it.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable, Sequence
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


def keyed_normal(keys: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """Draw standard normal noise on the device of `keys`, each row a function of its key alone.

    SplitMix64 of key and place, then Box and Muller's transform. No generator, no sync, and the
    same numbers, but for rounding, on every device.

    Args:
        keys: (B, …), any numbers that differ from row to row.
        shape: of a row.

    Returns:
        float32 (B, ...) of that shape.
    """
    import torch

    count = math.prod(shape)
    pairs = torch.arange((count + 1) // 2, device=keys.device)
    bits = _mixed(_key_of(keys)[:, None] + pairs * _GOLDEN)
    first = ((bits >> 40) & _24_BITS) + 1  # never 0, whose logarithm is infinite
    radius = (first.float() / (1 << 24)).log().mul(-2).sqrt()
    angle = (bits & _24_BITS).float() * (2 * math.pi / (1 << 24))
    normal = torch.cat([radius * angle.cos(), radius * angle.sin()], dim=1)
    return normal[:, :count].view(len(keys), *shape)


def _key_of(keys: torch.Tensor) -> torch.Tensor:
    """Return one int64 (B,) of the bits of float32 (B, …)."""
    import torch

    words = keys.detach().flatten(1).float().contiguous().view(torch.int32).long()
    places = torch.arange(words.shape[1], device=keys.device)
    return _mixed(_mixed(words + places * _GOLDEN).sum(1))


def _mixed(values: torch.Tensor) -> torch.Tensor:
    """Return SplitMix64's scrambled bits of int64 values."""
    values = (values ^ _shifted(values, 30)) * _as_signed(0xBF58476D1CE4E5B9)
    values = (values ^ _shifted(values, 27)) * _as_signed(0x94D049BB133111EB)
    return values ^ _shifted(values, 31)


def _shifted(values: torch.Tensor, count: int) -> torch.Tensor:
    """Shift right without copies of the sign, which torch's shift of int64 makes."""
    return (values >> count) & ((1 << (64 - count)) - 1)


def _as_signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


_GOLDEN = _as_signed(0x9E3779B97F4A7C15)
_24_BITS = (1 << 24) - 1
