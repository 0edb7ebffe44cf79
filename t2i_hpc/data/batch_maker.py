"""From stored samples to the arrays of a batch: what loader processes do, whatever they read.

Every random choice (caption, words, crop, mirror) is drawn from (seed, position), so a sample
looks the same whichever worker of whichever rank makes it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from t2i_hpc.common.seeds import generator
from t2i_hpc.config.data import DataConfig
from t2i_hpc.data.arrays import Arrays, Layout, Texts
from t2i_hpc.data.captions import PADDING, Vocabulary, select_words
from t2i_hpc.data.images import Pixels
from t2i_hpc.data.reader import StoredSample

DRAWS = 4  # caption, down, across, mirror


@dataclass(frozen=True)
class Planned:
    """What a batch is made of.

    Attributes:
        positions: places in the endless stream.
        indices: the sample at each position, a row of the index; empty where nobody knows.
        draws: the random numbers of each position, four of them.
    """

    positions: Sequence[int]
    indices: Sequence[int]
    draws: Sequence[Sequence[float]]


class BatchMaker(ABC):
    """Makes batches, into arrays that it is given.

    Args:
        vocabulary: of the captions.
        config: words, margin and flip.
        resolution: side of the images in pixels.
        seed: of captions and crops.
    """

    def __init__(
        self, vocabulary: Vocabulary, config: DataConfig, resolution: int, seed: int
    ) -> None:
        self.vocabulary, self.resolution, self.seed = vocabulary, resolution, seed
        self.flip, self.words = config.flip, config.words
        self.load_size = round(resolution * config.margin)

    @abstractmethod
    def plan(self, batches: Iterable[Sequence[int]]) -> Iterator[Planned]:
        """Say what each of some batches, given by positions, is made of."""

    @abstractmethod
    def _sample(self, planned: Planned, row: int) -> tuple[StoredSample, Pixels]:
        """Return a sample of a batch, and of its image the pixels (R, R, 3) that are wanted.

        The pixels need not outlive the next call.
        """

    def layout(self, samples: int) -> Layout:
        """Return the size of the arrays of some samples."""
        return Layout(samples, self.resolution, self.words)

    def fill(self, planned: Planned, arrays: Arrays) -> Texts:
        """Make a batch, into arrays of its size.

        Raises:
            DataError: a sample cannot be read or decoded.
        """
        arrays.positions[:] = planned.positions
        arrays.tokens[:] = PADDING
        captions, keys = [], []
        for row, (position, drawn) in enumerate(zip(planned.positions, planned.draws, strict=True)):
            stored, pixels = self._sample(planned, row)
            caption = stored.captions[int(drawn[0] * len(stored.captions))]
            words = self._encode(caption, position)
            arrays.tokens[row, : len(words)] = words
            arrays.lengths[row], arrays.classes[row] = len(words), stored.class_id
            if self.flip and drawn[3] < 0.5:
                _mirror(pixels, arrays.images[row])
            else:
                arrays.images[row] = pixels
            captions.append(caption)
            keys.append(stored.key)
        return Texts(captions, keys)

    def _encode(self, caption: str, position: int) -> list[int]:
        """Return 1 to `words` word numbers; a caption without known words is one padding word."""
        words = self.vocabulary.encode(caption)
        if len(words) > self.words:
            rng = generator(self.seed, "words of a training sample", position)
            words = select_words(words, self.words, rng)
        return words or [PADDING]


def _mirror(image: Pixels, target: Pixels) -> None:
    """Write an image (height, width, 3) mirrored; torch does it six times as fast as NumPy."""
    readable = image if image.flags.writeable else np.array(image)
    flipped = torch.flip(torch.from_numpy(readable).permute(2, 0, 1), (2,))
    torch.from_numpy(target).permute(2, 0, 1).copy_(flipped)
