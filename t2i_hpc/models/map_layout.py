"""The memory layout that maps pass through a network in."""

from __future__ import annotations

import torch
from torch import Tensor

_SMALL_SIDE = 32


def as_kernels_like(maps: Tensor) -> Tensor:
    """Return (B, C, H, W) in the layout that convolutions need not reorder.

    On a CPU that is channels-last, whatever the weights' is: oneDNN computes the gradients by
    inputs in it, and copying each back costs time. Layers pass a layout on. Not for networks with
    batch norm, whose kernel for channels-last adds up a map in float32 one by one: torch 2.14 is
    6.6e-5 off at (4, 64, 256, 256) instead of 5e-7. On a GPU ``engine.channels_last`` decides, by
    the weights.
    """
    if maps.device.type != "cpu":
        return maps
    return maps.contiguous(memory_format=torch.channels_last)


def small_as_weights(maps: Tensor) -> Tensor:
    """Return maps of at most 32 × 32 in the plain layout on a CPU, larger ones as they are.

    There the weights are larger than the maps, and gradients by weights come out in the layout of
    the maps: to copy those of a 1024-wide 4 × 4 convolution into the plain one takes longer than
    the channels-last kernels gain.
    """
    if maps.device.type != "cpu" or maps.shape[-1] > _SMALL_SIDE:
        return maps
    return maps.contiguous()
