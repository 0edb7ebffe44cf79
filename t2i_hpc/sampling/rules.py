"""The rules by which an evaluation's images are generated.

Whatever image i is made of (caption, noise) comes from (seed, i) alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from t2i_hpc.common.seeds import generator, noise
from t2i_hpc.data.split import Split

_CAPTION_TEXTS = {
    "one": "sample i modulo their number, one of its captions by (seed, i)",
    "all": "sample i modulo their number, each of its captions in turn",
}
_ROUNDING_TEXTS = {
    "nearest": "clamped to [-1, 1], to the nearest of 256 levels, no compression",
    "down": "clamped to [-1, 1], to the next lower of 256 levels, no compression",
}


@dataclass(frozen=True)
class GenerationRules:
    """How the images of an evaluation are generated.

    Attributes:
        captions: one (by the seed) or all (each in turn).
        truncation: largest noise in standard deviations, None for any.
        rounding: nearest or down.
        caption_tokens: most tokens of a caption; None: as many as in training.
        images_per_caption: images in a row that share a caption.
    """

    captions: str = "one"
    truncation: float | None = None
    rounding: str = "nearest"
    caption_tokens: int | None = None
    images_per_caption: int = 1

    def text(self) -> dict[str, str]:
        """Return the choices as a protocol states them."""
        bound = self.truncation
        kept = "plain" if bound is None else f"normal cut off at {bound:g} standard deviations"
        choice, each = _CAPTION_TEXTS[self.captions], self.images_per_caption
        return {
            "caption_choice": choice if each == 1 else f"{each} images in a row of each: {choice}",
            "truncation": kept,
            "rounding": _ROUNDING_TEXTS[self.rounding],
            "caption_tokens": str(self.caption_tokens or "as many as in training"),
        }

    def sample_of(self, number: int, samples: int) -> int:
        """Return which of `samples` samples image `number` has its caption from."""
        return number // self.images_per_caption % samples

    def caption_of(self, number: int, samples: int, captions: int, seed: int) -> int:
        """Return which of its sample's `captions` captions image `number` is made of."""
        turn = number // self.images_per_caption
        if self.captions == "all":
            return turn // samples % captions
        rng = generator(seed, "caption of a generated image", turn)
        return int(rng.integers(captions))

    def noise(self, numbers: Iterable[int], width: int, seed: int) -> Tensor:
        """Return noise, float32 (B, width), on the CPU."""
        plain = noise(seed, "evaluation noise", numbers, width)
        return plain if self.truncation is None else truncate(plain, self.truncation)

    def levels(self, images: Tensor) -> Tensor:
        """Turn [-1, 1] into 0..255, on the images' device."""
        if self.rounding == "nearest":
            values = (images.float() * 127.5 + 127.5).round()
        else:  # in the order of AttnGAN, DM-GAN and SSA-GAN: the last bit decides a level
            values = ((images.float() + 1) * 127.5).floor()
        levels: Tensor = values.clamp(0, 255).to(torch.uint8)
        return levels


PLAIN = GenerationRules()


def truncate(plain: Tensor, bound: float) -> Tensor:
    """Map standard normal noise to the normal distribution truncated at ± `bound`.

    Each value goes to the one with the same rank, so that noise of one seed stays recognizable
    under any bound.
    """
    share = math.erf(bound / math.sqrt(2))
    rank = torch.special.ndtr(plain.double())
    inside = torch.special.ndtri(0.5 + share * (rank - 0.5))
    bounded: Tensor = inside.clamp(-bound, bound).float()
    return bounded


def caption_of(split: Split, number: int, seed: int, rules: GenerationRules) -> str:
    """Return the caption that image `number` of an evaluation is made of."""
    captions = split.sample(rules.sample_of(number, split.count)).captions
    return captions[rules.caption_of(number, split.count, len(captions), seed)]


def to_uint8(images: Tensor) -> Tensor:
    """Turn [-1, 1] into 0..255, clamped and rounded to the nearest; on the CPU."""
    return PLAIN.levels(images).cpu()
