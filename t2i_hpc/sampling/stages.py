"""What the stages of a generator did: their images side by side, and the words they attend to.

AttnGAN's Fig. 4: for a caption the images of all stages, then for each stage that reads words
the five that it reads most, as light on the image. Attention sums to 1 over the words at each
place, so a word's share is the mean of its map; DM-GAN's memory is read in the same way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from t2i_hpc.models import GeneratedImages
from t2i_hpc.sampling.grids import labelled_grid
from t2i_hpc.sampling.rules import to_uint8

_SHADE = 0.15  # brightness that is left where a word does not look
_SMALLEST_CELL = 128  # pixels; smaller pictures are enlarged by a whole number
_WORDS = 5


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


@dataclass(frozen=True)
class ReadWord(WordMap):
    """A word, where it is read, and how much of all reading is of it (0 to 1)."""

    share: float

    @property
    def label(self) -> str:
        """What is written above the map."""
        return f"{self.word} {self.share:.0%}"


@dataclass(frozen=True)
class Staged:
    """One picture a caption, as it passed the stages.

    Attributes:
        images: uint8 (R, 3, h, w) for each stage with an image, smallest first.
        attention: (R, T, h, w) for each stage that reads words, first to last.
        words: the words of each caption, at most T.
    """

    images: Sequence[Tensor]
    attention: Sequence[Tensor]
    words: Sequence[Sequence[str]]

    def grids(self, captions: Sequence[str]) -> dict[str, Image.Image]:
        """Return the grids there are something to show in, by name."""
        grids = {}
        if len(self.images) > 1:
            grids["stages"] = stage_grid(self.images, captions)
        if self.attention:
            grids["words"] = word_grid(self, captions)
        return grids


def stage_grid(images: Sequence[Tensor], captions: Sequence[str]) -> Image.Image:
    """Lay out one row a caption: the images of all stages, enlarged to the last one's size.

    Args:
        images: uint8 (R, 3, h, w), smallest first; pixels are repeated, not smoothed.
        captions: R texts.
    """
    side = images[-1].shape[-2:]
    columns = [F.interpolate(image, tuple(side), mode="nearest") for image in images]
    rows = [list(row) for row in zip(*columns, strict=True)]
    head = [f"{image.shape[-2]} x {image.shape[-1]}" for image in images]
    return labelled_grid(rows, [head, *([] for _ in rows[1:])], captions)


def word_grid(staged: Staged, captions: Sequence[str]) -> Image.Image:
    """Lay out a row for each caption and stage that reads: the image, then its words on it."""
    pictures, rows, texts, heads = [], [], [], []
    for row, caption in enumerate(captions):
        for stage, maps in enumerate(staged.attention):
            pictures.append(row)
            rows.append(most_read(staged.words[row], maps[row]))
            texts.append(caption if stage == 0 else "")
            heads.append(f"stage {stage + 2}")
    return attention_grid(staged.images[-1][pictures], rows, texts, heads)


def most_read(words: Sequence[str], maps: Tensor, most: int = _WORDS) -> list[ReadWord]:
    """Return the words with the largest shares, largest first; a repeated word counts once.

    Args:
        words: n words.
        maps: (T, h, w) with T ≥ n, summing to 1 over T at each place.
        most: how many words to return, where there are so many.
    """
    read = [
        ReadWord(word, weights / weights.sum().clamp(min=1e-12), float(weights.mean()))
        for word, weights in zip(words, maps.float(), strict=False)
    ]
    ranked = sorted(read, key=lambda word: -word.share)
    first = {word.word: word for word in reversed(ranked)}
    return [word for word in ranked if word is first[word.word]][:most]


def staged(pictures: GeneratedImages, rows: slice, words: Sequence[Sequence[str]]) -> Staged:
    """Return what the stages made of some pictures, whose captions have these words."""
    return Staged(
        [to_uint8(image[rows]) for image in pictures.images],
        [maps[rows] for maps in pictures.attention],
        words,
    )
