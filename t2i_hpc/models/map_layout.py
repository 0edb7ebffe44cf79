"""The memory layout that maps pass through a network in."""

from __future__ import annotations

import torch
from torch import Tensor


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
