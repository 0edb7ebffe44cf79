"""Attention of words over the regions of a picture, as light on the picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from t2i_hpc.reporting.grids import labelled_grid

_SHADE = 0.15  # brightness that is left where a word does not look
_SMALLEST_CELL = 128  # pixels; smaller pictures are enlarged by a whole number


@dataclass(frozen=True)
class WordMap:
    """A word and where it looks: (r, r), summing to 1."""

    word: str
    weights: Tensor

    @property
    def peak(self) -> float:
        """The largest weight, over that of even attention: 1 for a word that looks everywhere."""
        return float(self.weights.max()) * self.weights.numel()

    @property
    def label(self) -> str:
        """What is written above the map."""
        return f"{self.word} {self.peak:.1f}x"


def attention_grid(
    images: Tensor,
    rows: Sequence[Sequence[WordMap]],
    captions: Sequence[str],
    heads: Sequence[str] | None = None,
) -> Image.Image:
    """Lay out one row a picture: caption, the picture, then it in the light of each word.

    A cell is as bright as the word's weight over its largest weight, and labelled with the word
    and its peak, or what else a map says of itself.

    Args:
        images: uint8 (R, 3, H, W).
        rows: the words of each picture; rows may have different numbers of them.
        captions: R texts.
        heads: what is written above each picture; None for nothing.
    """
    height, width = images.shape[2:]
    cells, labels = [], []
    for image, words, head in zip(images, rows, heads or [""] * len(rows), strict=True):
        cells.append([image, *(_lit(image, word.weights) for word in words)])
        labels.append([head, *(word.label for word in words)])
    scale = max(1, -(-_SMALLEST_CELL // min(height, width)))
    return labelled_grid(cells, labels, captions, scale)


def _lit(image: Tensor, weights: Tensor) -> Tensor:
    """Return the picture, dark where the weights are small: uint8 (3, H, W)."""
    height, width = image.shape[1:]
    light = (weights / weights.max().clamp(min=1e-12))[None, None]
    smooth = F.interpolate(light, (height, width), mode="bilinear", align_corners=False)[0]
    shaded = image * (_SHADE + (1 - _SHADE) * smooth)
    return shaded.round().clamp(0, 255).to(torch.uint8)
