"""How the images of an evaluation are drawn: captions, noise, rounding.

Whatever image i is made of comes from (seed, i) alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from t2i_hpc.common.seeds import generator, noise

_CAPTION_WORDS = {
    "one": "sample i modulo their number, one of its captions by (seed, i)",
    "all": "sample i modulo their number, each of its captions in turn",
}
_ROUNDING_WORDS = {
    "nearest": "clamped to [-1, 1], to the nearest of 256 levels, no compression",
    "down": "clamped to [-1, 1], to the next lower of 256 levels, no compression",
}


@dataclass(frozen=True)
class DrawingRules:
    """The choices.

    Attributes:
        captions: one (by the seed) or all (each in turn).
        truncation: largest noise in standard deviations, None for any.
        rounding: nearest or down.
        caption_words: most words of a caption that are read; None: as many as in training.
    """

    captions: str = "one"
    truncation: float | None = None
    rounding: str = "nearest"
    caption_words: int | None = None

    def words(self) -> dict[str, str]:
        """Return the choices as a protocol states them."""
        bound = self.truncation
        kept = "plain" if bound is None else f"normal cut off at {bound:g} standard deviations"
        return {
            "caption_choice": _CAPTION_WORDS[self.captions],
            "truncation": kept,
            "rounding": _ROUNDING_WORDS[self.rounding],
            "caption_words": str(self.caption_words or "as many as in training"),
        }

    def caption_of(self, number: int, samples: int, captions: int, seed: int) -> int:
        """Return which of its sample's `captions` captions image `number` is made of."""
        if self.captions == "all":
            return number // samples % captions
        rng = generator(seed, "caption of a generated image", number)
        return int(rng.integers(captions))

    def noise(self, numbers: Iterable[int], width: int, seed: int) -> Tensor:
        """Return noise, float32 (B, width), on the CPU."""
        drawn = noise(seed, "evaluation noise", numbers, width)
        return drawn if self.truncation is None else cut_off(drawn, self.truncation)

    def levels(self, images: Tensor) -> Tensor:
        """Turn [-1, 1] into 0..255 where the images lie."""
        if self.rounding == "nearest":
            values = (images.float() * 127.5 + 127.5).round()
        else:  # in the order of AttnGAN, DM-GAN and SSA-GAN: the last bit decides a level
            values = ((images.float() + 1) * 127.5).floor()
        levels: Tensor = values.clamp(0, 255).to(torch.uint8)
        return levels


PLAIN = DrawingRules()


def cut_off(drawn: Tensor, bound: float) -> Tensor:
    """Map standard normal noise to the normal distribution cut off at ± `bound`.

    Each value goes to the one with the same rank, so that noise which was drawn with one seed
    stays recognisable under any bound.
    """
    share = math.erf(bound / math.sqrt(2))
    rank = torch.special.ndtr(drawn.double())
    inside = torch.special.ndtri(0.5 + share * (rank - 0.5))
    bounded: Tensor = inside.clamp(-bound, bound).float()
    return bounded
