"""DF-GAN's discriminator as of CVPR 2022: image features and a separate head for the sentence.

The first version's discriminator is :class:`t2i_hpc.models.discriminator.MatchingDiscriminator`.
Here features grow to 8 instead of 16 times the channel unit, and published checkpoints keep
network and head in two state dicts; :class:`PairedDiscriminator` joins them again. As there,
shortcuts between equal widths have no convolution, dead or not.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from t2i_hpc.models.discriminator import DownBlock
from t2i_hpc.models.piecewise_linear import leaky_relu

_LAST_SIDE = 4
_WIDEST = 8


class DFDiscriminator(nn.Module):
    """Features of images; the judgement is :class:`DFHead`'s.

    Args:
        resolution: side of the images in pixels, 4·2^n.
        width: channel unit (nf); widths are 1, 2, 4, 8, 8, … times it.
    """

    def __init__(self, resolution: int = 256, width: int = 32) -> None:
        super().__init__()
        halvings = (resolution // _LAST_SIDE).bit_length() - 1
        widths = [min(_WIDEST, 1 << level) * width for level in range(halvings + 1)]
        self.from_rgb = nn.Conv2d(3, widths[0], 3, padding=1)
        self.blocks = nn.Sequential(*(DownBlock(a, b) for a, b in pairwise(widths)))

    def forward(self, image: Tensor) -> Tensor:
        """Return (B, 8·nf, 4, 4) features of images (B, 3, R, R) in [-1, 1]."""
        result: Tensor = self.blocks(self.from_rgb(image))
        return result

    def features(self, image: Tensor) -> Tensor:
        """Return the same as a call, under the name that all discriminators share."""
        return self(image)  # type: ignore[no-any-return]


class DFHead(nn.Module):
    """Logits of image features with sentences (NetC of the released code).

    Args:
        width: channel unit (nf) of the discriminator whose features it judges.
        sentence_width: length of the sentence vector.
    """

    def __init__(self, width: int = 32, sentence_width: int = 256) -> None:
        super().__init__()
        channels = _WIDEST * width + sentence_width
        self.joint = nn.Conv2d(channels, 2 * width, 3, padding=1, bias=False)
        self.logit = nn.Conv2d(2 * width, 1, _LAST_SIDE, bias=False)

    def forward(self, features: Tensor, sentence: Tensor) -> Tensor:
        """Return logits (B,) of (B, 8·nf, 4, 4) with sentences (B, S)."""
        spread = sentence[:, :, None, None].expand(-1, -1, *features.shape[2:])
        hidden = leaky_relu(self.joint(torch.cat([features, spread], dim=1)))
        result: Tensor = self.logit(hidden)
        return result.flatten()


class PairedDiscriminator(nn.Module):
    """A discriminator and its head under one forward, called as a matching discriminator."""

    def __init__(self, discriminator: DFDiscriminator, head: DFHead) -> None:
        super().__init__()
        self.discriminator = discriminator
        self.head = head

    def features(self, image: Tensor) -> Tensor:
        """Return (B, 8·nf, 4, 4) features of images (B, 3, R, R) in [-1, 1]."""
        return self.discriminator.features(image)

    def judge(self, features: Tensor, sentence: Tensor) -> Tensor:
        """Return logits (B,) of image features with sentences (B, S); high = real, matching."""
        result: Tensor = self.head(features, sentence)
        return result

    def forward(self, image: Tensor, sentence: Tensor) -> Tensor:
        """Return logits (B,) of images with sentences."""
        return self.judge(self.features(image), sentence)
