"""SSA-GAN's generator: noise and a sentence to an image and its semantic masks (paper Fig. 2).

4×4 features made of the noise pass through semantic-spatial aware convolution blocks (SSACN,
paper §3.2, Fig. 3) that double the size. The mask that a block predicts from the previous
features says where the text may change them; the sentence says how. The default is what the
released code does (it made the published numbers): the modulation is x̂·(1 + m·γ(e)) + m·β(e), and
features are enlarged by the nearest pixel. The paper says m·(γ(e)·x̂ + β(e)) and bilinear
enlargement; both are options.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from t2i_hpc.models import GeneratedImages
from t2i_hpc.models.global_batch import GlobalBatchNorm2d
from t2i_hpc.models.map_layout import as_weights
from t2i_hpc.models.modulation import modulate
from t2i_hpc.models.recomputation import remade
from t2i_hpc.models.resampling import enlarge

_FIRST_SIDE = 4
_WIDEST = 8


class AffineParameter(nn.Module):
    """γ or β of an affine modulation: a condition (B, S) to one number a channel (B, C, 1, 1).

    A two-layer perceptron. The last layer's weight starts at zero and its bias at `start`, so
    that training begins with the same number for every condition.
    """

    def __init__(
        self, condition_width: int, hidden_width: int, channels: int, start: float = 0.0
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


class SemanticSpatialBatchNorm(nn.Module):
    """Conditional batch norm in the places a mask allows.

    Args:
        channels: of the features.
        sentence_width: length of the sentence vector.
        modulation: ``code`` is x̂·(1 + m·γ(e)) + m·β(e) (released code); ``paper`` is
            m·(γ(e)·x̂ + β(e)) (SSA-GAN Eq. 5), with γ starting at 1: starting at 0 the features
            would vanish, and with them every gradient.
    """

    def __init__(self, channels: int, sentence_width: int, modulation: str = "code") -> None:
        super().__init__()
        self.keeps_features = modulation == "code"
        self.norm = GlobalBatchNorm2d(channels, affine=False)
        start = 0.0 if self.keeps_features else 1.0
        self.gamma = AffineParameter(sentence_width, sentence_width, channels, start)
        self.beta = AffineParameter(sentence_width, sentence_width, channels)

    def forward(
        self,
        features: Tensor,
        sentence: Tensor,
        mask: Tensor | None,
        enlarge: Callable[[Tensor], Tensor] | None = None,
    ) -> Tensor:
        """Modulate (B, C, H, W) by the sentence (B, S) where mask (B, 1, H, W) in [0, 1] is high.

        Without a mask the whole map is modulated. With `enlarge` the features are enlarged before.
        Neither the large nor the normalized map is kept for the backward pass, which makes them
        again of the small one: half of what the generator would keep.
        """
        # A compiler decides itself what it keeps.
        keeps = self.training and torch.is_grad_enabled() and not torch.compiler.is_compiling()
        if not keeps:
            large = features if enlarge is None else enlarge(features)
            return self._modulate(self.norm(large), sentence, mask)
        again = partial(_identity, features) if enlarge is None else partial(enlarge, features)
        large = again()
        with remade(large, again) if enlarge is not None else nullcontext():
            normalized, mean, deviation = self.norm.with_moments(large)
        del large
        with remade(normalized, partial(_normalize, again, mean, deviation)):
            return self._modulate(normalized, sentence, mask)

    def _modulate(self, normalized: Tensor, sentence: Tensor, mask: Tensor | None) -> Tensor:
        gamma, beta = self.gamma(sentence), self.beta(sentence)
        if mask is not None and self.keeps_features:
            return modulate(normalized, gamma, beta, mask)
        change: Tensor = torch.addcmul(beta, gamma, normalized)
        masked = change if mask is None else mask * change
        return normalized + masked if self.keeps_features else masked


def _identity(value: Tensor) -> Tensor:
    return value


def _normalize(features: Callable[[], Tensor], mean: Tensor, deviation: Tensor) -> Tensor:
    """Return (x - mean) / σ with the bits of a batch norm in training mode."""
    zero, one = torch.zeros_like(mean), torch.ones_like(mean)
    return F.batch_norm(
        features(), zero, one, deviation, -mean * deviation, training=False, eps=0.0
    )


class MaskPredictor(nn.Module):
    """Semantic mask logits (B, 1, H, W) of features (B, C, H, W); sigmoid gives the mask."""

    recomputable = True

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.features = nn.Conv2d(channels, width, 3, padding=1)
        self.norm = GlobalBatchNorm2d(width)
        self.logits = nn.Conv2d(width, 1, 1)

    def forward(self, features: Tensor) -> Tensor:
        """Predict the logits."""
        result: Tensor = self.logits(F.relu_(self.norm(self.features(features))))
        return result


class SSABlock(nn.Module):
    """Residual block: SSCBN, ReLU, conv, twice, beside a shortcut.

    Args:
        channels: channels of the incoming features.
        out_channels: channels of the result.
        sentence_width: length of the sentence vector.
        upsampling: factor of enlargement before the block, 1 for none.
        enlargement: ``nearest`` (released code) or ``bilinear`` (paper).
        modulation: of :class:`SemanticSpatialBatchNorm`.
    """

    recomputable = True

    def __init__(
        self,
        channels: int,
        out_channels: int,
        sentence_width: int,
        upsampling: int,
        *,
        enlargement: str = "nearest",
        modulation: str = "code",
    ) -> None:
        super().__init__()
        self.upsampling = upsampling
        self.enlargement = enlargement
        self.norm1 = SemanticSpatialBatchNorm(channels, sentence_width, modulation)
        self.conv1 = nn.Conv2d(channels, out_channels, 3, padding=1)
        self.norm2 = SemanticSpatialBatchNorm(out_channels, sentence_width, modulation)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.shortcut = (
            nn.Conv2d(channels, out_channels, 1) if channels != out_channels else nn.Identity()
        )
        self.scale = nn.Parameter(torch.zeros(1))

    def forward(self, features: Tensor, sentence: Tensor, mask: Tensor | None) -> Tensor:
        """Map (B, C, H, W) to (B, C', u·H, u·W); `mask` has the size of the result."""
        # A 1×1 convolution commutes with enlargement, whose weights sum to 1: before it costs
        # u² less.
        shortcut = self.enlarge(self.shortcut(features))
        enlarge = self.enlarge if self.upsampling > 1 else None
        hidden = self.conv1(F.relu_(self.norm1(features, sentence, mask, enlarge)))
        hidden = self.conv2(F.relu_(self.norm2(hidden, sentence, mask)))
        return torch.addcmul(shortcut, self.scale, hidden)

    def enlarge(self, features: Tensor) -> Tensor:
        """Enlarge features as before the block's first layer."""
        return enlarge(features, self.upsampling, self.enlargement)


@dataclass(frozen=True)
class BlockPlan:
    """Channels (in units of the generator's width) and upsampling of each block."""

    widths: tuple[int, ...]
    upsamplings: tuple[int, ...]


def plan_blocks(resolution: int, blocks: int | None) -> BlockPlan:
    """Lay out the blocks from 4 px to `resolution`.

    The published generator has one block at each size (7 at 256 px, widths 8 8 8 8 4 2 1); a
    smaller resolution drops wide blocks at the front. With fewer blocks than sizes the first
    steps of enlargement are the larger ones, so that most layers work at fine sizes; the first
    block is as wide as the published one, for it begins at 4×4 with 8 units either way.

    Raises:
        ValueError: more blocks than sizes, or fewer than two.
    """
    doublings = (resolution // _FIRST_SIDE).bit_length() - 1
    count = doublings + 1 if blocks is None else blocks
    if not 2 <= count <= doublings + 1:
        raise ValueError(f"{count} blocks do not fit: 2 to {doublings + 1} at {resolution} px")
    share, rest = divmod(doublings, count - 1)
    steps = [share + (index < rest) for index in range(count - 1)]
    later = (min(_WIDEST, 1 << (count - 1 - index)) for index in range(1, count))
    return BlockPlan((_WIDEST, *later), (1, *(1 << step for step in steps)))


class SSAGenerator(nn.Module):
    """Generator of SSA-GAN.

    Args:
        resolution: side of the image in pixels.
        width: channel unit (ngf).
        noise_width: length of the noise vector.
        sentence_width: length of the sentence vector.
        blocks: number of SSACN blocks, None for one at each size.
        masks: number of blocks with a mask, counted from the last backwards, None for all.
        mask_width: channels inside the mask predictors.
        mask_source: ``code`` predicts a mask's logits from features before they are enlarged by
            the nearest pixel, then enlarges the logits bilinearly (released code); ``paper``
            enlarges features bilinearly and predicts from those (SSA-GAN §3.2).
        modulation: of :class:`~t2i_hpc.models.ssa_generator.SemanticSpatialBatchNorm`.
    """

    def __init__(
        self,
        resolution: int = 256,
        *,
        width: int = 64,
        noise_width: int = 100,
        sentence_width: int = 256,
        blocks: int | None = None,
        masks: int | None = None,
        mask_width: int = 100,
        mask_source: str = "code",
        modulation: str = "code",
    ) -> None:
        super().__init__()
        plan = plan_blocks(resolution, blocks)
        count = len(plan.widths)
        masked = count if masks is None else masks
        if not 0 <= masked <= count:
            raise ValueError(f"{masked} masks do not fit: 0 to {count} with {count} blocks")
        inputs = [plan.widths[0], *plan.widths[:-1]]
        self.first_channels = plan.widths[0] * width
        self.masks_from_enlarged = mask_source == "paper"
        self.stem = nn.Linear(noise_width, self.first_channels * _FIRST_SIDE**2)
        self.blocks = nn.ModuleList(
            SSABlock(
                before * width,
                after * width,
                sentence_width,
                upsampling,
                enlargement="bilinear" if self.masks_from_enlarged else "nearest",
                modulation=modulation,
            )
            for before, after, upsampling in zip(inputs, plan.widths, plan.upsamplings, strict=True)
        )
        self.mask_predictors = nn.ModuleDict(
            {
                str(index): MaskPredictor(inputs[index] * width, mask_width)
                for index in range(count - masked, count)
            }
        )
        self.norm = GlobalBatchNorm2d(plan.widths[-1] * width)
        self.to_rgb = nn.Conv2d(plan.widths[-1] * width, 3, 3, padding=1)

    def forward(self, noise: Tensor, sentence: Tensor) -> GeneratedImages:
        """Generate (B, 3, R, R) in [-1, 1] from noise (B, Z) and sentences (B, S)."""
        features = self.stem(noise).view(-1, self.first_channels, _FIRST_SIDE, _FIRST_SIDE)
        features = as_weights(features, self.to_rgb)
        masks: list[Tensor] = []
        for index, block in enumerate(self.blocks):
            mask = self._mask(index, features)
            masks += [] if mask is None else [mask]
            features = block(features, sentence, mask)
        image = torch.tanh(self.to_rgb(F.leaky_relu_(self.norm(features), 0.2)))
        return GeneratedImages(images=[image], masks=masks)

    def _mask(self, index: int, features: Tensor) -> Tensor | None:
        """Predict the mask of a block from the features that enter it."""
        if str(index) not in self.mask_predictors:
            return None
        block, predictor = cast(SSABlock, self.blocks[index]), self.mask_predictors[str(index)]
        if self.masks_from_enlarged:
            return torch.sigmoid(predictor(block.enlarge(features)))
        return torch.sigmoid(enlarge(predictor(features), block.upsampling, "bilinear"))
