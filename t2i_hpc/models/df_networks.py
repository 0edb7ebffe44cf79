"""DF-GAN's generator: a sentence shapes every layer by affine transformations alone.

No batch norm and no masks; each convolution follows two conditional affine layers, "deep
fusion" (Tao et al., CVPR 2022, §3.4). Two layouts exist and have published weights:

* :class:`DFGenerator`, of the CVPR 2022 version: noise and sentence steer each layer, every
  block enlarges, the residual branch is added as it is;
* :class:`EarlyDFGenerator`, of the first version, from which SSA-GAN descends: the sentence
  alone steers, there is a block at 4 px, a learned factor scales the residual branch.

DF-GAN's discriminator as of CVPR 2022: image features and a separate head for the sentence.

The first version's discriminator is :class:`t2i_hpc.models.discriminator.MatchingDiscriminator`.
Here features grow to 8 instead of 16 times the channel unit, and published checkpoints keep
network and head in two state dicts; :class:`PairedDiscriminator` joins them again. As there,
shortcuts between equal widths have no convolution, dead or not.
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from t2i_hpc.models.discriminator import DownBlock
from t2i_hpc.models.outputs import GeneratedImages
from t2i_hpc.models.piecewise_linear import leaky_relu
from t2i_hpc.models.ssa_generator import enlarge, plan_blocks

_FIRST_SIDE = 4


class ConditionalOffset(nn.Module):
    """Two-layer perceptron from a condition (B, S) to one number a channel (B, C, 1, 1).

    The last layer's weight starts at zero and its bias at `start`, so that training begins
    with the same number for every condition.
    """

    def __init__(
        self, condition_width: int, hidden_width: int, channels: int, start: float
    ) -> None:
        super().__init__()
        self.hidden = nn.Linear(condition_width, hidden_width)
        self.output = nn.Linear(hidden_width, channels)
        nn.init.zeros_(self.output.weight)
        nn.init.constant_(self.output.bias, start)

    def forward(self, condition: Tensor) -> Tensor:
        """Return (B, C, 1, 1)."""
        result: Tensor = self.output(F.relu(self.hidden(condition)))
        return result[:, :, None, None]


class ConditionalAffine(nn.Module):
    """Map features x to γ(c)·x + β(c), channel by channel; starts as the identity."""

    def __init__(self, channels: int, condition_width: int, hidden_width: int) -> None:
        super().__init__()
        self.gamma = ConditionalOffset(condition_width, hidden_width, channels, 1.0)
        self.beta = ConditionalOffset(condition_width, hidden_width, channels, 0.0)

    def forward(self, features: Tensor, condition: Tensor) -> Tensor:
        """Modulate (B, C, H, W) by the condition (B, S)."""
        return torch.addcmul(self.beta(condition), self.gamma(condition), features)


class FusionLayer(nn.Module):
    """Affine, LeakyReLU, affine, LeakyReLU: a condition bends features twice."""

    def __init__(self, channels: int, condition_width: int, hidden_width: int) -> None:
        super().__init__()
        self.affine1 = ConditionalAffine(channels, condition_width, hidden_width)
        self.affine2 = ConditionalAffine(channels, condition_width, hidden_width)

    def forward(self, features: Tensor, condition: Tensor) -> Tensor:
        """Modulate (B, C, H, W) by the condition (B, S)."""
        features = F.leaky_relu(self.affine1(features, condition), 0.2)
        return F.leaky_relu(self.affine2(features, condition), 0.2)


class DFBlock(nn.Module):
    """Residual block: fusion, conv, twice, beside a shortcut.

    Args:
        channels, out_channels: of the incoming features and of the result.
        condition_width: length of the vector that steers the block.
        upsampling: factor of enlargement before the block, 1 for none.
        hidden_width: of the affine layers' perceptrons; None for as many as channels.
        scaled: whether a learned factor, 0 at first, scales the residual branch.
    """

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
        shortcut = enlarge(self.shortcut(features), self.upsampling, "nearest")
        hidden: Tensor = enlarge(features, self.upsampling, "nearest")
        hidden = self.conv1(self.fusion1(hidden, condition))
        hidden = self.conv2(self.fusion2(hidden, condition))
        return shortcut + (hidden if self.scale is None else self.scale * hidden)


class _Generator(nn.Module):
    """What both layouts share: a stem of the noise, blocks, and the way to colors."""

    blocks: nn.ModuleList

    def __init__(self, noise_width: int, first_channels: int, last_channels: int) -> None:
        super().__init__()
        self.first_channels = first_channels
        self.stem = nn.Linear(noise_width, first_channels * _FIRST_SIDE**2)
        self.to_rgb = nn.Conv2d(last_channels, 3, 3, padding=1)

    def forward(self, noise: Tensor, sentence: Tensor) -> GeneratedImages:
        """Draw (B, 3, R, R) in [-1, 1] from noise (B, Z) and sentences (B, S); no masks."""
        condition = self.condition(noise, sentence)
        features = self.stem(noise).view(-1, self.first_channels, _FIRST_SIDE, _FIRST_SIDE)
        for block in self.blocks:
            features = block(features, condition)
        return GeneratedImages(images=[torch.tanh(self.to_rgb(F.leaky_relu(features, 0.2)))])

    def condition(self, noise: Tensor, sentence: Tensor) -> Tensor:
        """Return what steers the blocks."""
        raise NotImplementedError


class DFGenerator(_Generator):
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


class EarlyDFGenerator(_Generator):
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
