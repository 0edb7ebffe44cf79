"""The stages of AttnGAN and DM-GAN, made alike so that a generator is a list of them.

The first stage makes features of the condition and the noise. Every further one looks at the
words, refines the features and doubles their size; how it looks is what tells attention
(AttnGAN §3.1) from memory (DM-GAN §3.1) apart.
"""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from t2i_hpc.models.stage_blocks import GlobalBatchNorm1d, ResidualBlock, UpBlock
from t2i_hpc.models.word_attention import read_words

FIRST_SIDE = 4


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
        """Draw from conditions (B, C) and noise (B, Z)."""
        flat = F.glu(self.norm(self.linear(torch.cat([condition, noise], 1))), 1)
        features: Tensor = self.doubling(flat.view(len(flat), -1, FIRST_SIDE, FIRST_SIDE))
        return features


class RefiningStage(nn.Module):
    """Read from the words, refine, double the size: (B, ngf, h, w) to (B, ngf, 2h, 2w).

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
        """Make what :meth:`look` needs."""
        raise NotImplementedError

    def look(self, features: Tensor, words: Words) -> tuple[Tensor, Tensor]:
        """Return (B, 2·ngf, h, w) of features (B, ngf, h, w), and the attention (B, T, h, w)."""
        raise NotImplementedError

    def forward(self, features: Tensor, words: Words) -> tuple[Tensor, Tensor]:
        """Return the larger features and the attention (B, T, h, w)."""
        joined, attention = self.look(features, words)
        return self.doubling(self.residuals(joined)), attention


class AttentionStage(RefiningStage):
    """AttnGAN's stage: each position is joined by the words it attends to."""

    def prepare(self, width: int, word_width: int) -> None:
        """Make the projection of words to the width of features."""
        self.context = nn.Conv2d(word_width, width, 1, bias=False)

    def look(self, features: Tensor, words: Words) -> tuple[Tensor, Tensor]:
        """Return features and context, joined, and the attention."""
        projected = self.context(words.vectors[..., None]).squeeze(3)
        context, attention = read_words(features, projected, projected, words.hidden)
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

    def look(self, features: Tensor, words: Words) -> tuple[Tensor, Tensor]:
        """Return the features with what was read, twice over, and the attention."""
        memory = self.write(features, words.vectors)
        keys, values = F.relu(self.key(memory)), F.relu(self.value(memory))
        read, attention = read_words(features, keys, values, words.hidden)
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
