"""SSA-GAN's generator: noise and a sentence to an image and its semantic masks.

4×4 features made of the noise pass through SSACN blocks that double the size; each block is
steered by the sentence inside a mask that the previous features predict (paper Fig. 2).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from t2i_hpc.common.step import Pictures
from t2i_hpc.models.batch_norm import GlobalBatchNorm2d
from t2i_hpc.models.ssa_block import MaskPredictor, SSABlock, enlarge

_FIRST_SIDE = 4
_WIDEST = 8


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
        modulation: of :class:`~t2i_hpc.models.ssa_block.SemanticSpatialBatchNorm`.
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

    def forward(self, noise: Tensor, sentence: Tensor) -> Pictures:
        """Draw (B, 3, R, R) in [-1, 1] from noise (B, Z) and sentences (B, S)."""
        features = self.stem(noise).view(-1, self.first_channels, _FIRST_SIDE, _FIRST_SIDE)
        masks: list[Tensor] = []
        for index, block in enumerate(self.blocks):
            mask = self._mask(index, features)
            masks += [] if mask is None else [mask]
            features = block(features, sentence, mask)
        image = torch.tanh(self.to_rgb(F.leaky_relu(self.norm(features), 0.2)))
        return Pictures(images=[image], masks=masks)

    def _mask(self, index: int, features: Tensor) -> Tensor | None:
        """Predict the mask of a block from the features that enter it."""
        if str(index) not in self.mask_predictors:
            return None
        block, predictor = cast(SSABlock, self.blocks[index]), self.mask_predictors[str(index)]
        if self.masks_from_enlarged:
            return torch.sigmoid(predictor(block.enlarge(features)))
        return torch.sigmoid(enlarge(predictor(features), block.upsampling, "bilinear"))


def parameter_count(module: nn.Module, trainable: bool = False) -> int:
    """Return the number of parameters."""
    chosen: Sequence[nn.Parameter] = [
        p for p in module.parameters() if p.requires_grad or not trainable
    ]
    return sum(p.numel() for p in chosen)
