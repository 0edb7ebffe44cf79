"""How 8-bit images become a network's input size: each way gives another score.

Parmar et al. (CVPR 2022) show that libraries' resizing moves FID by several points between
identical images, so the way is named and part of the protocol.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def as_tensorflow_1(images: Tensor, size: int) -> Tensor:
    """Resize as TensorFlow 1's ``resize_bilinear`` does: no smoothing, no half pixels.

    Args:
        images: uint8 (B, 3, H, W).
        size: side of the result.

    Returns:
        float32 (B, 3, size, size), 0..255; equal to torch-fidelity's to the bit on a CPU.
    """
    values = images.float()
    left, right, across = _neighbors(values.shape[3], size, values.device)
    top, bottom, down = _neighbors(values.shape[2], size, values.device)
    # Rows of pixels are blended first sideways, on the smaller image, then downwards.
    first = values[:, :, :, left]
    sideways = first + (values[:, :, :, right] - first) * across
    upper = sideways[:, :, top]
    return upper + (sideways[:, :, bottom] - upper) * down[:, None]


def cleanly(images: Tensor, size: int) -> Tensor:
    """Resize with smoothing, bicubic, without rounding in between (clean-fid's rule).

    Args:
        images: uint8 (B, 3, H, W).
        size: side of the result.

    Returns:
        float32 (B, 3, size, size), within 0..255.
    """
    values = images.float()
    if images.shape[2:] == (size, size):
        return values
    resized = F.interpolate(values, (size, size), mode="bicubic", antialias=True)
    return resized.clamp(0, 255)


def as_pillow(images: Tensor, size: int) -> Tensor:
    """Resize with Pillow's bilinear filter to 8-bit levels, as AttnGAN's successors did.

    Args:
        images: uint8 (B, 3, H, W), on any device.
        size: side of the result.

    Returns:
        float32 (B, 3, size, size) of whole levels 0..255, on the images' device.
    """
    # The kernel that rounds as Pillow does exists for the CPU alone.
    resized = F.interpolate(images.cpu(), (size, size), mode="bilinear", antialias=True)
    return resized.to(images.device).float()


def _neighbors(old: int, new: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Return the two pixels between which each new one lies, and how far behind the first."""
    place = torch.arange(new, dtype=torch.float32, device=device)
    place = place * torch.tensor(old / new, dtype=torch.float32, device=device)
    low = place.long()
    return low, (low + 1).clamp_max(old - 1), place - low.float()
