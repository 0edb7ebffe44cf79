"""The generator of AttnGAN, DM-GAN and their hybrids: stages, each with an image of its own.

A sentence and noise give features at a small size; each further stage attends to the words,
refines the features and doubles their size (AttnGAN Fig. 2, DM-GAN Fig. 2). How it attends is
what tells attention (AttnGAN §3.1) from memory (DM-GAN §3.1) apart, so a generator is a list of
stages, and the hybrids AttnDM-GAN and DMAttn-GAN are two lists more.

Every convolution is followed by a batch norm and a gated linear unit (half of the channels times
the sigmoid of the other half). Shapes and order are those of AttnGAN's released code.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from t2i_hpc.common.collectives import gather_rows, rank
from t2i_hpc.models import GeneratedImages
from t2i_hpc.models.global_batch import GlobalBatchNorm1d, GlobalBatchNorm2d
from t2i_hpc.models.resampling import enlarge_nearest

FIRST_SIDE = 4
INITIAL = "initial"


class UpBlock(nn.Module):
    """Double the size of (B, C, H, W) by the nearest pixel; convolution to (B, C', 2H, 2W)."""

    recomputable = True

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, 2 * out_channels, 3, padding=1, bias=False)
        self.norm = GlobalBatchNorm2d(2 * out_channels)

    def forward(self, features: Tensor) -> Tensor:
        """Return the larger features."""
        large = enlarge_nearest(features, 2)
        return F.glu(self.norm(self.conv(large)), 1)


class ResidualBlock(nn.Module):
    """Two convolutions beside (B, C, H, W), with no activation after the sum."""

    recomputable = True

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 2 * channels, 3, padding=1, bias=False)
        self.norm1 = GlobalBatchNorm2d(2 * channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm2 = GlobalBatchNorm2d(channels)

    def forward(self, features: Tensor) -> Tensor:
        """Return the features and what the convolutions add to them."""
        hidden = F.glu(self.norm1(self.conv1(features)), 1)
        added: Tensor = self.norm2(self.conv2(hidden))
        return features + added


class Condition(NamedTuple):
    """A condition (B, C) and the Gaussian it was drawn from: mean and log variance, both (B, C)."""

    value: Tensor
    mean: Tensor
    log_variance: Tensor


class ConditioningAugmentation(nn.Module):
    """Conditioning augmentation, CA: a condition sampled from a Gaussian of the sentence.

    StackGAN §3.2.

    Args:
        sentence_width: length of the sentence vector.
        condition_width: length of the condition.
    """

    def __init__(self, sentence_width: int, condition_width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(sentence_width, 4 * condition_width)

    def forward(self, sentence: Tensor, noise: Tensor | None = None) -> Condition:
        """Return μ + σ·noise for sentences (B, S) and normal noise (B, C).

        Without noise: μ in evaluation mode, drawn by torch's generator in training.
        """
        mean, log_variance = F.glu(self.linear(sentence), 1).chunk(2, 1)
        if noise is None:
            noise = torch.randn_like(mean) if self.training else torch.zeros_like(mean)
        return Condition(mean + (0.5 * log_variance).exp() * noise, mean, log_variance)


def hidden_words(padding_mask: Tensor, positions: int, reference: bool, training: bool) -> Tensor:
    """Return where words are hidden, from bool (B, T): (B, 1, T), or (B, positions, T) as released.

    The released code numbers the rows (sample b, position q) as b·positions + q, and gives row n
    the mask of sample n modulo the batch size. While training that is the global batch, so the
    result does not depend on the number of ranks.

    Args:
        padding_mask: True where a caption has no word.
        positions: places of the image that attend.
        reference: whether to do as the released code does.
        training: whether all ranks take part.
    """
    if not reference:
        return padding_mask[:, None]
    everyone = gather_rows(padding_mask.float()) > 0 if training else padding_mask
    batch = padding_mask.shape[0]  # len() of a tensor would fix the size of an exported graph
    first = rank() * batch * positions if training else 0
    rows = torch.arange(first, first + batch * positions, device=padding_mask.device)
    return everyone[rows % everyone.shape[0]].view(batch, positions, -1)


def attend_to_words(
    features: Tensor, keys: Tensor, values: Tensor, hidden: Tensor
) -> tuple[Tensor, Tensor]:
    """Attend from every position of an image to the words.

    Args:
        features: queries of the positions, (B, C, h, w).
        keys: of the words, (B, C, T).
        values: of the words, (B, V, T).
        hidden: bool (B, 1 or h·w, T), words that a position must not see.

    Returns:
        The context (B, V, h, w), and the attention (B, T, h, w), which sums to 1 over words.
    """
    size = features.shape[2:]
    scores = features.flatten(2).transpose(1, 2) @ keys
    attention = scores.masked_fill(hidden, float("-inf")).softmax(2).transpose(1, 2)
    read = values @ attention.to(values.dtype)
    return read.unflatten(2, size), attention.unflatten(2, size)


class Words(NamedTuple):
    """Word vectors (B, D, T) and, for so many positions, where they are hidden.

    `hidden` is bool (B, 1 or positions, T).
    """

    vectors: Tensor
    hidden: Tensor


class InitialStage(nn.Module):
    """Features (B, ngf, R, R) of a vector.

    Args:
        input_width: length of condition and noise together.
        width: channels of the result (ngf).
        resolution: R, 4·2^n; widths fall from 2^n·ngf by halves.
    """

    def __init__(self, input_width: int, width: int, resolution: int) -> None:
        super().__init__()
        doublings = (resolution // FIRST_SIDE).bit_length() - 1
        widths = [width << level for level in range(doublings, -1, -1)]
        self.linear = nn.Linear(input_width, 2 * widths[0] * FIRST_SIDE**2, bias=False)
        self.norm = GlobalBatchNorm1d(2 * widths[0] * FIRST_SIDE**2)
        self.doubling = nn.Sequential(*(UpBlock(a, b) for a, b in pairwise(widths)))

    def forward(self, condition: Tensor, noise: Tensor) -> Tensor:
        """Return features of conditions (B, C) and noise (B, Z)."""
        flat = F.glu(self.norm(self.linear(torch.cat([condition, noise], 1))), 1)
        # Not len(flat), which would fix the size of the batch in an exported graph.
        features: Tensor = self.doubling(flat.view(flat.shape[0], -1, FIRST_SIDE, FIRST_SIDE))
        return features


class RefiningStage(nn.Module):
    """Attend to the words, refine, double the size: (B, ngf, h, w) to (B, ngf, 2h, 2w).

    Args:
        width: channels of the features (ngf).
        word_width: length of a word vector.
        residuals: number of residual blocks.
    """

    def __init__(self, width: int, word_width: int, residuals: int) -> None:
        super().__init__()
        self.prepare(width, word_width)
        self.residuals = nn.Sequential(*(ResidualBlock(2 * width) for _ in range(residuals)))
        self.doubling = UpBlock(2 * width, width)

    def prepare(self, width: int, word_width: int) -> None:
        """Make what :meth:`attend` needs."""
        raise NotImplementedError

    def attend(self, features: Tensor, words: Words) -> tuple[Tensor, Tensor]:
        """Return (B, 2·ngf, h, w) of features (B, ngf, h, w), and the attention (B, T, h, w)."""
        raise NotImplementedError

    def forward(self, features: Tensor, words: Words) -> tuple[Tensor, Tensor]:
        """Return the larger features and the attention (B, T, h, w)."""
        joined, attention = self.attend(features, words)
        return self.doubling(self.residuals(joined)), attention


class AttentionStage(RefiningStage):
    """AttnGAN's stage: each position is joined by the words it attends to."""

    def prepare(self, width: int, word_width: int) -> None:
        """Make the projection of words to the width of features."""
        self.context = nn.Conv2d(word_width, width, 1, bias=False)

    def attend(self, features: Tensor, words: Words) -> tuple[Tensor, Tensor]:
        """Return features and context, joined, and the attention."""
        projected = self.context(words.vectors[..., None]).squeeze(3)
        context, attention = attend_to_words(features, projected, projected, words.hidden)
        return torch.cat([features, context], 1), attention


class MemoryStage(RefiningStage):
    """DM-GAN's stage: words are written to a memory as the image needs them, then read from it."""

    def prepare(self, width: int, word_width: int) -> None:
        """Make the gates, the memory's writing and its keys and values."""
        self.word_gate = nn.Linear(word_width, 1, bias=False)
        self.image_gate = nn.Linear(width, 1, bias=False)
        self.write_image = nn.Conv1d(width, 2 * width, 1)
        self.write_words = nn.Conv1d(word_width, 2 * width, 1)
        self.key = nn.Conv1d(2 * width, width, 1)
        self.value = nn.Conv1d(2 * width, width, 1)
        self.response = nn.Conv2d(2 * width, 1, 1)

    def attend(self, features: Tensor, words: Words) -> tuple[Tensor, Tensor]:
        """Return the features with what was read, twice over, and the attention."""
        memory = self.write(features, words.vectors)
        keys, values = F.relu(self.key(memory)), F.relu(self.value(memory))
        read, attention = attend_to_words(features, keys, values, words.hidden)
        gate = torch.sigmoid(self.response(torch.cat([features, read], 1)))
        fused = (1 - gate) * features + gate * read
        return torch.cat([fused, fused], 1), attention

    def write(self, features: Tensor, words: Tensor) -> Tensor:
        """Return the memory (B, 2·ngf, T) of features (B, ngf, h, w) and words (B, D, T).

        The image as a whole decides how much of each word is written (DM-GAN Eq. 7 and 8); no
        gradient goes into it, as in the released code.
        """
        image = features.mean((2, 3)).detach()
        from_word = self.word_gate(words.transpose(1, 2))
        gate = torch.sigmoid(from_word + self.image_gate(image)[:, None]).transpose(1, 2)
        written = F.relu(self.write_words(words)) * gate
        kept: Tensor = F.relu(self.write_image(image[:, :, None])) * (1 - gate)
        return written + kept


REFINING_STAGES: dict[str, type[RefiningStage]] = {
    "attention": AttentionStage,
    "memory": MemoryStage,
}


@dataclass(frozen=True)
class StagedImages(GeneratedImages):
    """The images of all stages, and the condition they were generated from.

    `attention` has a map (B, T, h, w) for every stage after the first, at the size of the
    features that attended: half of that stage's image.
    """

    condition: Condition = field(kw_only=True)


class StagedGenerator(nn.Module):
    """Generates images of doubling size, one a stage.

    Args:
        stages: ``initial``, then any number of ``attention`` and ``memory``.
        resolution: side of the last image in pixels.
        width: channels of the features (ngf).
        noise_width, sentence_width, condition_width: lengths of these vectors; a word has the
            length of a sentence.
        residuals: residual blocks of every stage after the first.
        reference_mask: hide words in the released code's wrong order, which published weights
            were trained with; see :func:`hidden_words`.

    Raises:
        ValueError: stages in another order, or more than fit into the resolution.
    """

    only_last_image = False

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
        with_image = range(len(stages))[-1:] if self.only_last_image else range(len(stages))
        self.to_rgb = nn.ModuleDict(
            {str(stage): nn.Conv2d(width, 3, 3, padding=1, bias=False) for stage in with_image}
        )

    def forward(
        self,
        noise: Tensor,
        sentence: Tensor,
        words: Tensor,
        padding_mask: Tensor,
        condition_noise: Tensor | None = None,
    ) -> StagedImages:
        """Generate images in [-1, 1] from noise (B, Z), sentences (B, S) and words (B, S, T).

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
        images, attentions = self._image(0, features), []
        for number, stage in enumerate(self.refining, 1):
            features, attention = stage(features, self._hide(features, words, padding_mask))
            images += self._image(number, features)
            attentions.append(attention)
        return StagedImages(images=images, attention=attentions, condition=condition)

    def _hide(self, features: Tensor, words: Tensor, padding_mask: Tensor) -> Words:
        positions = features.shape[2] * features.shape[3]
        hidden = hidden_words(padding_mask, positions, self.reference_mask, self.training)
        return Words(words, hidden)

    def _image(self, stage: int, features: Tensor) -> list[Tensor]:
        """Return the image of a stage, nothing where it has none."""
        if str(stage) not in self.to_rgb:
            return []
        return [torch.tanh(self.to_rgb[str(stage)](features))]


class SingleImageGenerator(StagedGenerator):
    """The same stages with an image of the last alone (AttnGAN's baseline AttnDCGAN)."""

    only_last_image = True


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
            f"{len(stages)} stages do not fit: the first of them would have {sides[0]} px at "
            f"{resolution} px, and {4 * FIRST_SIDE} px are the least"
        )
    return sides


@torch.no_grad()
def initialize(network: nn.Module) -> None:
    """Give a network AttnGAN's first weights, drawn from torch's generator.

    Convolutions and linear layers orthogonal, batch norms N(1, 0.02²) with zero biases, biases of
    linear layers zero; biases of convolutions stay as torch drew them.
    """
    for module in network.modules():
        if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Linear)):
            nn.init.orthogonal_(module.weight)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight, 1.0, 0.02)
            nn.init.zeros_(module.bias)
