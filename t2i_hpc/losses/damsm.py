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
from torch.utils.checkpoint import checkpoint

from t2i_hpc.common.collectives import gather_rows

_TINY = 1e-8


@dataclass(frozen=True)
class DAMSMSettings:
    """What the papers leave to choose.

    Attributes:
        gamma1, gamma2, gamma3: sharpness of the attention over regions, of the sum over words,
            of the softmax over the batch.
        root: whether the sum over words is followed by the root 1/γ₂ (AttnGAN Eq. 10).
        terms: ``both``, ``words`` or ``sentence``.
        chunk: captions whose words are compared with the images at a time, None for all.
    """

    gamma1: float = 5.0
    gamma2: float = 5.0
    gamma3: float = 10.0
    root: bool = False
    terms: str = "both"
    chunk: int | None = None


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
    """Return the losses, each a mean over the global batch.

    Args:
        regions: (B, D, r, r) of this rank's images.
        code: (B, D) of this rank's images.
        captions: of this rank; image i belongs to caption i.
        settings: sharpness, terms and form of the scores.

    Returns:
        ``image_to_words``, ``words_to_image``, ``image_to_sentence``, ``sentence_to_image``
        (w0, w1, s0, s1 of the literature), or the two that `settings.terms` asks for.
    """
    everyone = captions.gathered()
    losses: dict[str, Tensor] = {}
    if settings.terms != "sentence":
        scores = word_scores(regions.flatten(2), everyone.words, everyone.lengths, settings)
        losses |= _both_ways(settings.gamma3 * scores, everyone.classes, "words")
    if settings.terms != "words":
        scores = sentence_scores(code, everyone.sentence)
        losses |= _both_ways(settings.gamma3 * scores, everyone.classes, "sentence")
    return losses


def _both_ways(scores: Tensor, classes: Tensor, text: str) -> dict[str, Tensor]:
    """Name the contrastive losses of this rank's rows of scores."""
    rows, columns = contrastive(gather_rows(scores), classes)
    return {f"image_to_{text}": rows, f"{text}_to_image": columns}


def sentence_scores(code: Tensor, sentence: Tensor) -> Tensor:
    """Return cosines (B, M) of image codes (B, D) and sentences (M, D)."""
    norms = code.norm(dim=1)[:, None] * sentence.norm(dim=1)[None, :]
    cosines: Tensor = code @ sentence.t() / norms.clamp(min=_TINY)
    return cosines


def word_scores(regions: Tensor, words: Tensor, lengths: Tensor, settings: DAMSMSettings) -> Tensor:
    """Return log Σ_t exp(γ₂ cos(c_t, w_t)) of every image with every caption (B, M).

    c_t is the mean of the regions that word t attends to. The released code leaves out the
    root 1/γ₂ of AttnGAN's Eq. 10; ``settings.root`` brings it back. With ``settings.chunk`` the
    largest tensors are (B, chunk, R, T) instead of (B, M, R, T): each chunk is computed again in
    the backward pass.

    Args:
        regions: (B, D, R).
        words: (M, D, T), with `lengths` (M,) valid words each.
        settings: γ₁, γ₂, root and chunk.
    """
    valid = torch.arange(words.shape[2], device=words.device) < lengths[:, None]
    if settings.chunk is None or settings.chunk >= len(words):
        return _scores_of_chunk(regions, words, valid, settings)
    chunks = zip(words.split(settings.chunk), valid.split(settings.chunk), strict=True)
    return torch.cat([_recomputed(regions, *chunk, settings) for chunk in chunks], dim=1)


def _recomputed(regions: Tensor, words: Tensor, valid: Tensor, settings: DAMSMSettings) -> Tensor:
    scores: Tensor = checkpoint(
        _scores_of_chunk,
        regions,
        words,
        valid,
        settings,
        use_reentrant=False,
        preserve_rng_state=False,
    )
    return scores


def _scores_of_chunk(
    regions: Tensor, words: Tensor, valid: Tensor, settings: DAMSMSettings
) -> Tensor:
    attention = word_attention(regions, words, valid, settings.gamma1)
    context = torch.einsum("bdr,bmrt->bmdt", regions, attention)
    numerator = (context * words).sum(2)
    norms = context.norm(dim=2) * words.norm(dim=1)
    cosine = numerator / norms.clamp(min=_TINY)
    scores: Tensor = (settings.gamma2 * cosine).masked_fill(~valid, float("-inf")).logsumexp(2)
    return scores / settings.gamma2 if settings.root else scores


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
