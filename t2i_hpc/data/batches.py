"""The memory of a batch: one block of bytes, seen as arrays to fill or as a batch to train on.

The block may be shared by processes, or pinned so that a GPU fetches it by itself. Images are
kept (B, R, R, 3), the order in which decoders write and crops are whole rows; the batch shows
them as (B, 3, R, R) without moving a byte.

From stored samples to the arrays of a batch: what loader processes do, whatever they read.

Every random choice (caption, words, crop, mirror) is drawn from (seed, position), so a sample
looks the same whichever worker of whichever rank makes it.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from t2i_hpc.common.seeds import generator
from t2i_hpc.config.data import DataConfig
from t2i_hpc.data.captions import PADDING, Vocabulary, select_words
from t2i_hpc.data.images import Pixels
from t2i_hpc.data.reader import StoredSample


@dataclass(frozen=True)
class Batch:
    """One rank's part of a global batch.

    Attributes:
        images: uint8 (B, 3, H, W) as read; systems scale them to [-1, 1].
        tokens: int64 (B, T), padded with 0.
        lengths: int64 (B,), number of words of each caption, 1 ≤ length ≤ T.
        classes: int64 (B,), class of each image; unique numbers where there are no classes.
        positions: int64 (B,), the samples' places in the endless stream; always on the CPU,
            where the noise is drawn from them.
        captions: the text of each caption.
        keys: the samples' names in their shards.
    """

    images: Tensor
    tokens: Tensor
    lengths: Tensor
    classes: Tensor
    positions: Tensor
    captions: Sequence[str] = ()
    keys: Sequence[str] = ()

    def to(self, device: torch.device) -> Batch:
        """Return the batch with its tensors on `device`, the positions excepted."""
        names = ("images", "tokens", "lengths", "classes")
        moved = {name: getattr(self, name).to(device, non_blocking=True) for name in names}
        return replace(self, **moved)


Integers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Texts:
    """What of a batch is no number."""

    captions: Sequence[str]
    keys: Sequence[str]


@dataclass(frozen=True)
class Arrays:
    """The numbers of a batch.

    Attributes:
        images: uint8 (B, R, R, 3).
        tokens: int64 (B, T).
        lengths, classes, positions: int64 (B,).
    """

    images: npt.NDArray[np.uint8]
    tokens: Integers
    lengths: Integers
    classes: Integers
    positions: Integers


@dataclass(frozen=True)
class Layout:
    """Where what lies: samples, side of the images in pixels, words of a caption."""

    samples: int
    resolution: int
    words: int

    @property
    def bytes(self) -> int:
        """Bytes of a block."""
        return sum(math.prod(shape) * kind.itemsize for shape, kind in self._shapes().values())

    def new(self) -> Tensor:
        """Return a block, uint8 (bytes,); pinned where this process has a GPU to fetch it."""
        return torch.empty(self.bytes, dtype=torch.uint8, pin_memory=torch.cuda.is_initialized())

    def arrays(self, block: Tensor) -> Arrays:
        """See a block as arrays to fill."""
        return Arrays(**{name: part.numpy() for name, part in self._parts(block).items()})

    def batch(self, block: Tensor, texts: Texts) -> Batch:
        """See a block as a batch; texts are the rest of it."""
        parts = self._parts(block)
        images = parts.pop("images").permute(0, 3, 1, 2)
        return Batch(images=images, captions=texts.captions, keys=texts.keys, **parts)

    def _parts(self, block: Tensor) -> dict[str, Tensor]:
        parts, offset = {}, 0
        for name, (shape, kind) in self._shapes().items():
            count = math.prod(shape) * kind.itemsize
            parts[name] = block[offset : offset + count].view(kind).view(shape)
            offset += count
        return parts

    def _shapes(self) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        """Return shape and type by name; integers first, where they lie aligned."""
        one, side = (self.samples,), self.resolution
        return {
            "tokens": ((self.samples, self.words), torch.int64),
            "lengths": (one, torch.int64),
            "classes": (one, torch.int64),
            "positions": (one, torch.int64),
            "images": ((self.samples, side, side, 3), torch.uint8),
        }


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
        self.flip, self.max_tokens = config.flip, config.max_tokens
        self.load_size = round(resolution * config.resize_ratio)

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
        return Layout(samples, self.resolution, self.max_tokens)

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
        if len(words) > self.max_tokens:
            rng = generator(self.seed, "words of a training sample", position)
            words = select_words(words, self.max_tokens, rng)
        return words or [PADDING]


def _mirror(image: Pixels, target: Pixels) -> None:
    """Write an image (height, width, 3) mirrored; torch does it six times as fast as NumPy."""
    readable = image if image.flags.writeable else np.array(image)
    flipped = torch.flip(torch.from_numpy(readable).permute(2, 0, 1), (2,))
    torch.from_numpy(target).permute(2, 0, 1).copy_(flipped)
