"""The one-way discriminator of DF-GAN and SSA-GAN: is this image real and does it match?

It has no batch statistics, so real and fake images may share one forward. The shortcut
convolutions of the last two blocks that the published state dicts carry are never used there
and do not exist here: a dead parameter would break gradient averaging between ranks.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from t2i_hpc.models.piecewise_linear import average_pool, leaky_relu

_LAST_SIDE = 4
_WIDEST = 16


class DownBlock(nn.Module):
    """Residual block that halves (B, C, H, W) to (B, C', H/2, W/2)."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, out_channels, 4, stride=2, padding=1, bias=False)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.shortcut = (
            nn.Conv2d(channels, out_channels, 1) if channels != out_channels else nn.Identity()
        )
        self.scale = nn.Parameter(torch.zeros(1))

    def forward(self, features: Tensor) -> Tensor:
        """Return the halved features."""
        residual = leaky_relu(self.conv2(leaky_relu(self.conv1(features))))
        # A 1×1 convolution commutes with the mean of 4 pixels: after it costs 4 times less.
        shortcut = self.shortcut(average_pool(features))
        return torch.addcmul(shortcut, self.scale, residual)


class MatchingDiscriminator(nn.Module):
    """Discriminator of (image, sentence) pairs.

    Args:
        resolution: side of the images in pixels, 4·2^n.
        width: channel unit (ndf); widths are 1, 2, 4, 8, 16, 16, … times it.
        sentence_width: length of the sentence vector.
    """

    def __init__(self, resolution: int = 256, width: int = 64, sentence_width: int = 256) -> None:
        super().__init__()
        halvings = (resolution // _LAST_SIDE).bit_length() - 1
        widths = [min(_WIDEST, 1 << level) * width for level in range(halvings + 1)]
        self.from_rgb = nn.Conv2d(3, widths[0], 3, padding=1)
        self.blocks = nn.Sequential(*(DownBlock(a, b) for a, b in pairwise(widths)))
        self.joint = nn.Conv2d(widths[-1] + sentence_width, 2 * width, 3, padding=1, bias=False)
        self.logit = nn.Conv2d(2 * width, 1, _LAST_SIDE, bias=False)

    def features(self, image: Tensor) -> Tensor:
        """Return (B, 16·ndf, 4, 4) features of images (B, 3, R, R) in [-1, 1]."""
        result: Tensor = self.blocks(self.from_rgb(image))
        return result

    def judge(self, features: Tensor, sentence: Tensor) -> Tensor:
        """Return logits (B,) of image features with sentences (B, S); high = real and matching."""
        spread = sentence[:, :, None, None].expand(-1, -1, *features.shape[2:])
        hidden = leaky_relu(self.joint(torch.cat([features, spread], dim=1)))
        result: Tensor = self.logit(hidden)
        return result.flatten()

    def forward(self, image: Tensor, sentence: Tensor) -> Tensor:
        """Return logits (B,) of images with sentences."""
        return self.judge(self.features(image), sentence)
