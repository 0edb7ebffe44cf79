"""The rule that gives weights and inputs of the golden cases their values.

A tensor's values depend on its name in the reference, its shape and the case's seed alone, so
that two implementations can be given the same weights without exchanging any.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

Shapes = Mapping[str, Sequence[int]]


def state_dict(shapes: Shapes, seed: int, gain: float = 1.0) -> dict[str, Tensor]:
    """Fill a whole network."""
    return {name: weight(name, tuple(shape), seed, gain) for name, shape in shapes.items()}


def weight(name: str, shape: tuple[int, ...], seed: int, gain: float = 1.0) -> Tensor:
    """Fill one entry of a state dict; `gain` scales matrices and kernels."""
    kind = name.rpartition(".")[2]
    if kind == "num_batches_tracked":
        return torch.zeros(shape, dtype=torch.int64)
    draw = _generator(name, seed)
    if kind == "running_var":
        return _float32(0.5 + draw.random(shape))
    normal = draw.standard_normal(shape)
    if kind == "running_mean":
        return _float32(0.1 * normal)
    if len(shape) >= 2:
        fan_in = math.prod(shape[1:])
        return _float32(gain * math.sqrt(2.0 / fan_in) * normal)
    return _float32((1.0 if kind == "weight" else 0.0) + 0.1 * normal)


def values(name: str, shape: tuple[int, ...], seed: int, scale: float = 1.0) -> Tensor:
    """Fill an input: normal numbers times `scale`."""
    return _float32(scale * _generator(name, seed).standard_normal(shape))


def images(name: str, count: int, seed: int) -> Tensor:
    """Fill images (count, 3, 256, 256) in [-1, 1]."""
    return values(name, (count, 3, 256, 256), seed, 0.5).clamp(-1, 1)


def _generator(name: str, seed: int) -> np.random.Generator:
    return np.random.default_rng([zlib.crc32(name.encode()), seed])


def _float32(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.asarray(array, dtype=np.float32))
