"""The memory layout that maps pass through a network in."""

from __future__ import annotations

import torch
from torch import Tensor, nn

_SMALL_SIDE = 32
# Whether this CPU computes all gradients of a convolution well in channels-last.
_QUICK_CHANNELS_LAST = "AVX512" in torch.backends.cpu.get_cpu_capability()


def as_kernels_like(maps: Tensor, convolution: nn.Conv2d | None = None) -> Tensor:
    """Return (B, C, H, W) in the layout that convolutions need not reorder.

    On a CPU with AVX-512 that is channels-last, whatever the weights' is: oneDNN computes the
    gradients by inputs in it, and copying each back costs time. Layers pass a layout on. Not for
    networks with batch norm, whose kernel for channels-last adds up a map in float32 one by one:
    torch 2.14 is 6.6e-5 off at (4, 64, 256, 256) instead of 5e-7.

    Elsewhere ``engine.channels_last`` decides, by the weights: name a `convolution` of the network
    where these maps come from none. On a CPU with AVX2 alone, oneDNN's gradients by weights take
    twice to five times as long in channels-last as in the plain layout.
    """
    if maps.device.type != "cpu" or not _QUICK_CHANNELS_LAST:
        return maps if convolution is None else as_weights(maps, convolution)
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


def as_weights(maps: Tensor, convolution: nn.Conv2d) -> Tensor:
    """Return maps in the layout of a convolution's weights, whose kernel is larger than 1 × 1.

    For where a network's first maps are made without a convolution: a residual sum has the layout
    of its shortcut, so all later layers would reorder what they get, and give it back reordered.
    """
    last = convolution.weight.is_contiguous(memory_format=torch.channels_last)
    return maps.contiguous(memory_format=torch.channels_last) if last else maps
