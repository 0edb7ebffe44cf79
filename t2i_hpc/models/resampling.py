"""Maps enlarged and halved, by the quickest kernel of each layout.

torch's kernels on CPUs are made for channels-last maps. Plain ones they reorder before and after
when height and width of the result sum to 128 or less: 13 times the work at (4, 512, 32, 32).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

_REORDERED_SIDES = 128


def enlarge(maps: Tensor, factor: int, mode: str) -> Tensor:
    """Enlarge (B, C, H, W) `factor` times: ``nearest``, or ``bilinear`` with aligned corners."""
    if factor == 1:
        return maps
    if mode == "nearest":
        return enlarge_nearest(maps, factor)
    return F.interpolate(maps, scale_factor=factor, mode=mode, align_corners=True)


def enlarge_nearest(maps: Tensor, factor: int) -> Tensor:
    """Return (B, C, f·H, f·W): each value `factor` × `factor` times. Differentiable once."""
    if torch.compiler.is_compiling() or not _reordered(maps, factor):
        return F.interpolate(maps, scale_factor=factor, mode="nearest")
    result: Tensor = _Repeated.apply(maps, factor)
    return result


def repeat(maps: Tensor, factor: int) -> Tensor:
    """Return what :func:`enlarge_nearest` does, without a gradient of its own."""
    if not _reordered(maps, factor):
        return F.interpolate(maps, scale_factor=factor, mode="nearest")
    batch, channels, height, width = maps.shape
    repeated = maps[:, :, :, None, :, None].expand(batch, channels, height, factor, width, factor)
    return repeated.reshape(batch, channels, factor * height, factor * width)


def halve(maps: Tensor) -> Tensor:
    """Return the means (B, C, H/2, W/2) of 2 × 2 values; H and W even."""
    if maps.device.type != "cpu":
        return F.avg_pool2d(maps, 2)
    if maps.is_contiguous():
        rows = maps[..., 0::2, :] + maps[..., 1::2, :]
        return (rows[..., 0::2] + rows[..., 1::2]).mul_(0.25)
    return F.interpolate(maps, scale_factor=0.5, mode="bilinear", align_corners=False)


class _Repeated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, maps: Tensor, factor: int) -> Tensor:
        ctx.factor, ctx.shape = float(factor), maps.shape
        return repeat(maps, factor)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        height, width = gradient.shape[-2:]
        backward = torch.ops.aten.upsample_nearest2d_backward
        factors = (ctx.factor, ctx.factor)
        return backward(gradient, (height, width), ctx.shape, *factors), None


def _reordered(maps: Tensor, factor: int) -> bool:
    """Return whether torch would reorder these maps to enlarge them."""
    sides = factor * (maps.shape[-2] + maps.shape[-1])
    return maps.device.type == "cpu" and maps.is_contiguous() and sides <= _REORDERED_SIDES
