"""DF-GAN's generator: a sentence shapes every layer by affine transformations alone.

No batch norm and no masks; each convolution follows two conditional affine layers, "deep
fusion" (Tao et al., CVPR 2022, §3.4). Two layouts exist and have published weights:

* :class:`DFGenerator`, of the CVPR 2022 version: noise and sentence steer each layer, every
  block enlarges, the residual branch is added as it is;
* :class:`EarlyDFGenerator`, of the first version, from which SSA-GAN descends: the sentence
  alone steers, there is a block at 4 px, a learned factor scales the residual branch.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from t2i_hpc.models import GeneratedImages
from t2i_hpc.models.map_layout import as_kernels_like
from t2i_hpc.models.resampling import enlarge
from t2i_hpc.models.ssa_generator import AffineParameter, plan_blocks

_FIRST_SIDE = 4


class ConditionalAffine(nn.Module):
    """Map features x to γ(c)·x + β(c), channel by channel; starts as the identity."""

    def __init__(self, channels: int, condition_width: int, hidden_width: int) -> None:
        super().__init__()
        self.gamma = AffineParameter(condition_width, hidden_width, channels, 1.0)
        self.beta = AffineParameter(condition_width, hidden_width, channels, 0.0)

    def forward(self, features: Tensor, condition: Tensor) -> Tensor:
        """Modulate (B, C, H, W) by the condition (B, S)."""
        return torch.addcmul(self.beta(condition), self.gamma(condition), features)


class FusionLayer(nn.Module):
    """Affine, LeakyReLU, affine, LeakyReLU: one condition, or one each, bends features twice."""

    def __init__(self, channels: int, condition_width: int, hidden_width: int) -> None:
        super().__init__()
        self.affine1 = ConditionalAffine(channels, condition_width, hidden_width)
        self.affine2 = ConditionalAffine(channels, condition_width, hidden_width)

    def forward(self, features: Tensor, condition: Tensor, second: Tensor | None = None) -> Tensor:
        """Modulate (B, C, H, W) by the condition (B, S), or by two of them."""
        # In place: what goes in is not kept beside what comes out.
        features = F.leaky_relu_(self.affine1(features, condition), 0.2)
        return F.leaky_relu_(self.affine2(features, condition if second is None else second), 0.2)


class DFBlock(nn.Module):
    """Residual block: fusion, conv, twice, beside a shortcut.

    Args:
        channels, out_channels: of the incoming features and of the result.
        condition_width: length of the vector that steers the block.
        upsampling: factor of enlargement before the block, 1 for none.
        hidden_width: of the affine layers' perceptrons; None for as many as channels.
        scaled: whether a learned factor, 0 at first, scales the residual branch.
    """

    recomputable = True

    def __init__(
        self,
        channels: int,
        out_channels: int,
        condition_width: int,
        upsampling: int,
        *,
        hidden_width: int | None = None,
        scaled: bool = False,
    ) -> None:
        super().__init__()
        self.upsampling = upsampling
        self.fusion1 = FusionLayer(channels, condition_width, hidden_width or channels)
        self.conv1 = nn.Conv2d(channels, out_channels, 3, padding=1)
        self.fusion2 = FusionLayer(out_channels, condition_width, hidden_width or out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.shortcut = (
            nn.Conv2d(channels, out_channels, 1) if channels != out_channels else nn.Identity()
        )
        self.scale = nn.Parameter(torch.zeros(1)) if scaled else None

    def forward(self, features: Tensor, condition: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C', u·H, u·W)."""
        # A 1×1 convolution commutes with copying pixels: before it costs u² less.
        shortcut, hidden = self.enlarge(self.shortcut(features)), self.enlarge(features)
        hidden = self.conv1(self.fusion1(hidden, condition))
        hidden = self.conv2(self.fusion2(hidden, condition))
        result: Tensor = shortcut + (hidden if self.scale is None else self.scale * hidden)
        return result

    def enlarge(self, features: Tensor) -> Tensor:
        """Enlarge (B, C, H, W) as before the block's first layer, by the nearest pixel."""
        return enlarge(features, self.upsampling, "nearest")


class StemmedGenerator(nn.Module):
    """What all layouts share: a stem of the noise, blocks, and the way to colors."""

    blocks: nn.ModuleList

    def __init__(self, noise_width: int, first_channels: int, last_channels: int) -> None:
        super().__init__()
        self.first_channels = first_channels
        self.stem = nn.Linear(noise_width, first_channels * _FIRST_SIDE**2)
        self.to_rgb = nn.Conv2d(last_channels, 3, 3, padding=1)

    def forward(self, noise: Tensor, sentence: Tensor) -> GeneratedImages:
        """Generate (B, 3, R, R) in [-1, 1] from noise (B, Z) and sentences (B, S); no masks."""
        conditions = self.conditions(noise, sentence)
        features = self.stem(noise).view(-1, self.first_channels, _FIRST_SIDE, _FIRST_SIDE)
        features = as_kernels_like(features, self.to_rgb)
        for block, condition in zip(self.blocks, conditions, strict=True):
            features = block(features, condition)
        return GeneratedImages(images=[torch.tanh(self.to_rgb(F.leaky_relu(features, 0.2)))])

    def conditions(self, noise: Tensor, sentence: Tensor) -> Sequence[Tensor]:
        """Return what steers each block: the same."""
        return [self.condition(noise, sentence)] * len(self.blocks)

    def condition(self, noise: Tensor, sentence: Tensor) -> Tensor:
        """Return what steers all blocks."""
        raise NotImplementedError


class DFGenerator(StemmedGenerator):
    """Generator of DF-GAN as of CVPR 2022.

    Args:
        resolution: side of the image in pixels, 4·2^n.
        width: channel unit (nf).
        noise_width, sentence_width: lengths of the two input vectors.
    """

    def __init__(
        self,
        resolution: int = 256,
        *,
        width: int = 32,
        noise_width: int = 100,
        sentence_width: int = 256,
    ) -> None:
        widths = [width * unit for unit in plan_blocks(resolution, None).widths]
        super().__init__(noise_width, widths[0], widths[-1])
        condition_width = noise_width + sentence_width
        self.blocks = nn.ModuleList(DFBlock(a, b, condition_width, 2) for a, b in pairwise(widths))

    def condition(self, noise: Tensor, sentence: Tensor) -> Tensor:
        """Return noise and sentence, joined (B, Z + S)."""
        return torch.cat([noise, sentence], dim=1)


class EarlyDFGenerator(StemmedGenerator):
    """Generator of DF-GAN's first version; arguments as :class:`DFGenerator`."""

    def __init__(
        self,
        resolution: int = 256,
        *,
        width: int = 32,
        noise_width: int = 100,
        sentence_width: int = 256,
    ) -> None:
        plan = plan_blocks(resolution, None)
        widths = [width * unit for unit in (plan.widths[0], *plan.widths)]
        super().__init__(noise_width, widths[0], widths[-1])
        self.blocks = nn.ModuleList(
            DFBlock(a, b, sentence_width, enlarged, hidden_width=sentence_width, scaled=True)
            for (a, b), enlarged in zip(pairwise(widths), plan.upsamplings, strict=True)
        )

    def condition(self, noise: Tensor, sentence: Tensor) -> Tensor:
        """Return the sentence (B, S)."""
        return sentence


_LAST_SIDE = 4
_WIDEST = 8
