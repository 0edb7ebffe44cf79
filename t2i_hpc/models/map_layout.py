"""The memory layout that maps pass through a network in."""

from __future__ import annotations

import torch
from torch import Tensor


def as_kernels_like(maps: Tensor) -> Tensor:
    """Return (B, C, H, W) in the layout that convolutions need not reorder.

    On a CPU that is channels-last, whatever the weights' is: oneDNN computes the gradients by
    inputs in it, and copying each back costs a tenth of an SSA-GAN's step. Layers pass a layout
    on. On a GPU ``engine.channels_last`` decides, by the weights.
    """
    if maps.device.type != "cpu":
        return maps
    return maps.contiguous(memory_format=torch.channels_last)
