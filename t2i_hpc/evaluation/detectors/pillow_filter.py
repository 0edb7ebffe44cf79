"""Pillow's bilinear filter of square 8-bit images, bit for bit, on any device.

Pillow blends rows sideways, rounds to 8 bits, then blends downwards and rounds again (of tall
images, in the other order). Its weights are whole numbers over 2²², so sums have no rounding of
their own: the same levels whatever computes them (Pillow 13, src/libImaging/Resample.c).
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from t2i_hpc.evaluation.detectors.detector import to_device

_BITS = 22  # of a weight; 255 of them fit 32 bits with a sign


def pillow_levels(images: Tensor, size: int) -> Tensor:
    """Resize as ``Image.resize((size, size), BILINEAR)`` does.

    Args:
        images: uint8 (B, 3, S, S), on any device.
        size: side of the result.

    Returns:
        uint8 (B, 3, size, size), on the images' device.
    """
    if images.device.type == "cpu":
        return _by_pillow(images, size)
    return by_integers(images, size)


def by_integers(images: Tensor, size: int) -> Tensor:
    """Return :func:`pillow_levels` by sums of whole numbers, without a copy to the host."""
    sideways = _blended(images, size)
    return _blended(sideways.mT, size).mT


def _by_pillow(images: Tensor, size: int) -> Tensor:
    resized = np.empty((len(images), size, size, 3), dtype=np.uint8)
    for place, pixels in zip(resized, images.permute(0, 2, 3, 1).contiguous().numpy(), strict=True):
        picture = Image.fromarray(pixels).resize((size, size), Image.Resampling.BILINEAR)
        place[:] = np.asarray(picture)
    return torch.from_numpy(resized).permute(0, 3, 1, 2)


def _blended(levels: Tensor, size: int) -> Tensor:
    """Return uint8 (B, 3, H, size) of uint8 (B, 3, H, W)."""
    old = levels.shape[-1]
    if old == size:
        return levels
    places, weights = _taps_on(old, size, levels.device)
    values = levels.int()
    total = values.new_full((*levels.shape[:-1], size), 1 << (_BITS - 1))  # a half: cut off below
    for place, weight in zip(places, weights, strict=True):
        total += values[..., place] * weight
    return total.bitwise_right_shift(_BITS).clamp_(0, 255).to(torch.uint8)


@lru_cache(maxsize=8)
def _taps_on(old: int, new: int, device: torch.device) -> tuple[Tensor, Tensor]:
    places, weights = map(torch.from_numpy, _taps(old, new))
    return to_device(places, device), to_device(weights, device)


def _taps(old: int, new: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int32]]:
    """Return which pixels make each new one and by how much, int64 and int32 (taps, new)."""
    scale = old / new
    reach = max(scale, 1.0)  # in old pixels
    rows = []
    for center in ((place + 0.5) * scale for place in range(new)):
        first, last = max(int(center - reach + 0.5), 0), min(int(center + reach + 0.5), old)
        shares = [max(0.0, 1 - abs((x - center + 0.5) * (1 / reach))) for x in range(first, last)]
        whole = [int(0.5 + share / sum(shares) * (1 << _BITS)) for share in shares]
        rows.append((first, whole))
    taps = max(len(whole) for _, whole in rows)
    weights = np.array([whole + [0] * (taps - len(whole)) for _, whole in rows], dtype=np.int32)
    places = np.array([first for first, _ in rows])[:, None] + np.arange(taps)
    return places.clip(max=old - 1).T.copy(), weights.T.copy()
