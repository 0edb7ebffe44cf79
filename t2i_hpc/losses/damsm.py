"""The deep attentional multimodal similarity model's losses (AttnGAN §3.2).

Scores of every image with every caption of the global batch, by words and by sentence, turned
into a softmax over captions for each image and over images for each caption. Texts are
gathered from all ranks, image regions never: each rank scores its own images against all
captions, then the rows of scores are gathered with their gradients.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from t2i_hpc.common.collectives import gather_rows

_TINY = 1e-8


@dataclass(frozen=True)
class DAMSMSettings:
    """γ₁ (attention over regions), γ₂ (sum over words), γ₃ (softmax over the batch)."""

    gamma1: float = 5.0
    gamma2: float = 5.0
    gamma3: float = 10.0


@dataclass(frozen=True)
class Captions:
    """Encoded captions: words (B, D, T), lengths (B,), sentence (B, D), classes (B,)."""

    words: Tensor
    lengths: Tensor
    sentence: Tensor
    classes: Tensor

    def gathered(self) -> Captions:
        """Return the captions of all ranks, in rank order."""
        return Captions(*(gather_rows(value) for value in vars(self).values()))


def damsm_losses(
    regions: Tensor, code: Tensor, captions: Captions, settings: DAMSMSettings
) -> dict[str, Tensor]:
    """Return the four losses, each a mean over the global batch.

    Args:
        regions: (B, D, r, r) of this rank's images.
        code: (B, D) of this rank's images.
        captions: of this rank; image i belongs to caption i.
        settings: the three sharpness factors.

    Returns:
        ``words_to_image``, ``image_to_words``, ``sentence_to_image``, ``image_to_sentence``
        (w1, w0, s1, s0 of the literature).
    """
    everyone = captions.gathered()
    classes = everyone.classes
    by_words = settings.gamma3 * word_scores(
        regions.flatten(2), everyone.words, everyone.lengths, settings.gamma1, settings.gamma2
    )
    by_sentence = settings.gamma3 * sentence_scores(code, everyone.sentence)
    words = contrastive(gather_rows(by_words), classes)
    sentence = contrastive(gather_rows(by_sentence), classes)
    return {
        "image_to_words": words[0],
        "words_to_image": words[1],
        "image_to_sentence": sentence[0],
        "sentence_to_image": sentence[1],
    }


def sentence_scores(code: Tensor, sentence: Tensor) -> Tensor:
    """Return cosines (B, M) of image codes (B, D) and sentences (M, D)."""
    norms = code.norm(dim=1)[:, None] * sentence.norm(dim=1)[None, :]
    cosines: Tensor = code @ sentence.t() / norms.clamp(min=_TINY)
    return cosines


def word_scores(
    regions: Tensor, words: Tensor, lengths: Tensor, gamma1: float, gamma2: float
) -> Tensor:
    """Return log Σ_t exp(γ₂ cos(c_t, w_t)) of every image with every caption (B, M).

    c_t is the mean of the regions that word t attends to. As the released code, without the
    root 1/γ₂ of AttnGAN's Eq. 10.

    Args:
        regions: (B, D, R).
        words: (M, D, T), with `lengths` (M,) valid words each.
        gamma1, gamma2: sharpness of the attention and of the sum.
    """
    valid = torch.arange(words.shape[2], device=words.device) < lengths[:, None]
    attention = word_attention(regions, words, valid, gamma1)
    context = torch.einsum("bdr,bmrt->bmdt", regions, attention)
    numerator = (context * words).sum(2)
    norms = context.norm(dim=2) * words.norm(dim=1)
    cosine = numerator / norms.clamp(min=_TINY)
    scores: Tensor = (gamma2 * cosine).masked_fill(~valid, float("-inf")).logsumexp(2)
    return scores


def word_attention(regions: Tensor, words: Tensor, valid: Tensor, gamma1: float) -> Tensor:
    """Return how much each word attends to each region: (B, M, R, T), summing to 1 over R.

    Similarities are first made to compete over the words of a region, then over the regions
    of a word. `valid` (M, T) marks words; padded words attend evenly and must be ignored.
    """
    similarity = torch.einsum("bdr,mdt->bmrt", regions, words)
    competing = similarity.masked_fill(~valid[:, None, :], float("-inf")).softmax(3)
    return (gamma1 * competing).softmax(2)


def contrastive(scores: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
    """Return cross-entropies of rows and columns of scores (M, M) against the diagonal.

    Other pairs of the same class count neither for nor against.
    """
    same = classes[:, None] == classes[None, :]
    same.fill_diagonal_(False)
    masked = scores.masked_fill(same, float("-inf"))
    target = torch.arange(len(scores), device=scores.device)
    return F.cross_entropy(masked, target), F.cross_entropy(masked.t(), target)
