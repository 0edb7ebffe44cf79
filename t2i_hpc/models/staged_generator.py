"""The generator of AttnGAN, DM-GAN and their hybrids: stages, each with an image of its own.

A sentence and noise give features at a small size; each further stage looks at the single
words and doubles the size (AttnGAN Fig. 2, DM-GAN Fig. 2). Which kinds of stages follow one
another is a list, so the hybrids AttnDM-GAN and DMAttn-GAN are two lists more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from t2i_hpc.common.step import Pictures
from t2i_hpc.models.stage_blocks import Condition, ConditioningAugmentation
from t2i_hpc.models.stages import FIRST_SIDE, REFINING_STAGES, InitialStage, Words
from t2i_hpc.models.word_attention import hidden_words

INITIAL = "initial"


@dataclass(frozen=True)
class StagedPictures(Pictures):
    """Pictures of all stages, and the condition they were drawn from.

    `attention` has a map (B, T, h, w) for every stage after the first, at the size of the
    features that attended: half of that stage's image.
    """

    condition: Condition = field(kw_only=True)


class StagedGenerator(nn.Module):
    """Draws images of doubling size, one a stage.

    Args:
        stages: ``initial``, then any number of ``attention`` and ``memory``.
        resolution: side of the last image in pixels.
        width: channels of the features (ngf).
        noise_width, sentence_width, condition_width: lengths of these vectors; a word has the
            length of a sentence.
        residuals: residual blocks of every stage after the first.
        reference_mask: hide words in the released code's wrong order, which published weights
            were trained with; see :mod:`t2i_hpc.models.word_attention`.

    Raises:
        ValueError: stages in another order, or more than fit into the resolution.
    """

    pictures_last_only = False

    def __init__(
        self,
        stages: Sequence[str],
        resolution: int = 256,
        *,
        width: int = 32,
        noise_width: int = 100,
        sentence_width: int = 256,
        condition_width: int = 100,
        residuals: int = 2,
        reference_mask: bool = False,
    ) -> None:
        super().__init__()
        self.resolutions = stage_resolutions(stages, resolution)
        self.reference_mask = reference_mask
        self.augmentation = ConditioningAugmentation(sentence_width, condition_width)
        self.initial = InitialStage(condition_width + noise_width, width, self.resolutions[0])
        self.refining = nn.ModuleList(
            REFINING_STAGES[kind](width, sentence_width, residuals) for kind in stages[1:]
        )
        pictured = range(len(stages))[-1:] if self.pictures_last_only else range(len(stages))
        self.to_rgb = nn.ModuleDict(
            {str(stage): nn.Conv2d(width, 3, 3, padding=1, bias=False) for stage in pictured}
        )

    def forward(
        self,
        noise: Tensor,
        sentence: Tensor,
        words: Tensor,
        padding_mask: Tensor,
        condition_noise: Tensor | None = None,
    ) -> StagedPictures:
        """Draw images in [-1, 1] from noise (B, Z), sentences (B, S) and words (B, S, T).

        Args:
            noise, sentence, words: as above.
            padding_mask: bool (B, T), True where there is no word.
            condition_noise: normal numbers (B, C) that decide the conditions; None for their
                mean in evaluation mode, and for torch's own numbers in training.

        Returns:
            Images (B, 3, r, r), smallest first, and one attention a stage after the first.
        """
        condition: Condition = self.augmentation(sentence, condition_noise)
        features = self.initial(condition.value, noise)
        images, attentions = self._picture(0, features), []
        for number, stage in enumerate(self.refining, 1):
            features, attention = stage(features, self._hide(features, words, padding_mask))
            images += self._picture(number, features)
            attentions.append(attention)
        return StagedPictures(images=images, attention=attentions, condition=condition)

    def _hide(self, features: Tensor, words: Tensor, padding_mask: Tensor) -> Words:
        positions = features.shape[2] * features.shape[3]
        hidden = hidden_words(padding_mask, positions, self.reference_mask, self.training)
        return Words(words, hidden)

    def _picture(self, stage: int, features: Tensor) -> list[Tensor]:
        """Return the image of a stage, nothing where it has none."""
        if str(stage) not in self.to_rgb:
            return []
        return [torch.tanh(self.to_rgb[str(stage)](features))]


class SinglePictureGenerator(StagedGenerator):
    """The same stages with an image of the last alone (AttnGAN's baseline AttnDCGAN)."""

    pictures_last_only = True


def stage_resolutions(stages: Sequence[str], resolution: int) -> list[int]:
    """Return the side of each stage's image: the last is `resolution`, each before it half.

    Raises:
        ValueError: stages in another order, or more than fit.
    """
    if list(stages[:1]) != [INITIAL] or INITIAL in stages[1:]:
        raise ValueError(f"stages must begin with {INITIAL!r}, and have it once")
    sides = [resolution >> level for level in range(len(stages) - 1, -1, -1)]
    if sides[0] < 4 * FIRST_SIDE:
        raise ValueError(
            f"{len(stages)} stages do not fit: the first of them would draw {sides[0]} px at "
            f"{resolution} px, and {4 * FIRST_SIDE} px are the least"
        )
    return sides
