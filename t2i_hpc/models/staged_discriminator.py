"""The discriminators of AttnGAN and DM-GAN, one for each size of image.

Each gives two logits: that an image is real (unconditional), and that it is real and matches its
sentence (conditional). AttnGAN's have batch norms; DM-GAN's have spectrally normalized
convolutions instead. With batch norms real and fake images must be entered apart, or they share
their statistics.
"""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from t2i_hpc.models.global_batch import GlobalBatchNorm2d

_LAST_SIDE = 4
_WIDEST = 8


class Logits(NamedTuple):
    """Logits (B,) of pairs, and of images alone; None from a discriminator without that head."""

    conditional: Tensor
    unconditional: Tensor | None


class SpectralConv2d(nn.Conv2d):
    """Convolution by a weight of spectral norm 1 (Miyato et al., ICLR 2018).

    The norm is estimated by one power iteration at every forward, as in DM-GAN's released code.
    In evaluation mode the iteration is not kept, so that an evaluation changes nothing.
    """

    left: Tensor
    right: Tensor

    def __init__(
        self, channels: int, out_channels: int, size: int, stride: int = 1, padding: int = 0
    ) -> None:
        super().__init__(channels, out_channels, size, stride, padding)
        self.register_buffer("left", F.normalize(torch.randn(out_channels), dim=0))
        self.register_buffer("right", F.normalize(torch.randn(channels * size * size), dim=0))

    def forward(self, features: Tensor) -> Tensor:
        """Return the convolution of (B, C, H, W)."""
        result: Tensor = self._conv_forward(features, self.normalized(), self.bias)
        return result

    def normalized(self) -> Tensor:
        """Return the weight by its largest singular value, in the weight's own precision."""
        with torch.autocast(self.weight.device.type, enabled=False):
            matrix = self.weight.flatten(1)
            with torch.no_grad():
                right = F.normalize(matrix.t() @ self.left, dim=0)
                left = F.normalize(matrix @ right, dim=0)
                if self.training:
                    self.left.copy_(left)
                    self.right.copy_(right)
            normalized: Tensor = self.weight / (left @ (matrix @ right))
            return normalized


class NormalizedConv(nn.Module):
    """Convolution, its normalization, LeakyReLU.

    Args:
        channels, out_channels: before and after.
        size: of the kernel: 4 halves the image, 3 keeps its size.
        norm: ``batch``, ``ragged`` (batch, where ranks have different numbers of rows),
            ``spectral`` or ``none``.
    """

    def __init__(self, channels: int, out_channels: int, size: int, norm: str) -> None:
        super().__init__()
        stride = 2 if size == 4 else 1
        self.conv: nn.Conv2d = (
            SpectralConv2d(channels, out_channels, size, stride, 1)
            if norm == "spectral"
            else nn.Conv2d(channels, out_channels, size, stride, 1, bias=False)
        )
        self.norm = GlobalBatchNorm2d(out_channels) if norm == "batch" else nn.Identity()

    def forward(self, features: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C', H', W')."""
        # In place: what goes in is not kept beside what comes out.
        return F.leaky_relu_(self.norm(self.conv(features)), 0.2)


class StagedDiscriminator(nn.Module):
    """Discriminator of images of one size.

    Args:
        resolution: side of the images in pixels, 4·2^n with n ≥ 2.
        width: channel unit (ndf); widths double with each halving, then fall back to 8·ndf.
        sentence_width: length of the sentence vector.
        norm: ``batch`` (AttnGAN) or ``spectral`` (DM-GAN).
        unconditional: whether there is a head for images without their sentence.
    """

    def __init__(
        self,
        resolution: int,
        width: int = 64,
        sentence_width: int = 256,
        *,
        norm: str = "batch",
        unconditional: bool = True,
    ) -> None:
        super().__init__()
        halvings = (resolution // _LAST_SIDE).bit_length() - 1
        widths = [width << level for level in range(halvings)]
        first = NormalizedConv(3, width, 4, "spectral" if norm == "spectral" else "none")
        self.blocks = nn.Sequential(first)
        for before, after in pairwise(widths):
            self.blocks.append(NormalizedConv(before, after, 4, norm))
        while widths[-1] > _WIDEST * width:
            widths.append(widths[-1] // 2)
            self.blocks.append(NormalizedConv(2 * widths[-1], widths[-1], 3, norm))
        last = widths[-1]
        self.joint = NormalizedConv(last + sentence_width, last, 3, norm)
        self.matching = nn.Conv2d(last, 1, _LAST_SIDE, _LAST_SIDE)
        self.real = nn.Conv2d(last, 1, _LAST_SIDE, _LAST_SIDE) if unconditional else None

    def features(self, image: Tensor) -> Tensor:
        """Return (B, 8·ndf, 4, 4) features of images (B, 3, R, R) in [-1, 1]."""
        result: Tensor = self.blocks(image)
        return result

    def logits(self, features: Tensor, sentence: Tensor) -> Tensor:
        """Return logits (B,) of image features with sentences (B, S); high = real and matching."""
        spread = sentence[:, :, None, None].expand(-1, -1, *features.shape[2:])
        result: Tensor = self.matching(self.joint(torch.cat([features, spread], 1)))
        return result.flatten()

    def unconditional_logits(self, features: Tensor) -> Tensor | None:
        """Return logits (B,) of image features alone; high = real. None where there is no head."""
        if self.real is None:
            return None
        result: Tensor = self.real(features)
        return result.flatten()

    def forward(self, image: Tensor, sentence: Tensor) -> Logits:
        """Return both logits of images with sentences."""
        features = self.features(image)
        return Logits(self.logits(features, sentence), self.unconditional_logits(features))
