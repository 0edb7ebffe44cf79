"""A batch: the memory it is in, and how it is made of samples.

A batch is one block of bytes, seen as arrays to fill or as tensors to train on. The block may be
shared by processes, or pinned so that a GPU fetches it by itself. Images are kept (B, R, R, 3),
the order in which decoders write and crops are whole rows; the batch shows them as (B, 3, R, R)
without moving a byte.

Every random choice (caption, tokens, crop, mirror) is drawn from (seed, position), so a sample
looks the same whichever worker of whichever rank makes it.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from t2i_hpc.config.data import DataConfig
from t2i_hpc.data.captions import PADDING, Vocabulary, encode_caption
from t2i_hpc.data.images import Pixels
from t2i_hpc.data.sampler import I64, uniform
from t2i_hpc.data.tar_reader import StoredSample


@dataclass(frozen=True)
class Batch:
    """One rank's slice of a global batch.

    Attributes:
        images: uint8 (B, 3, H, W) as read; systems scale them to [-1, 1].
        tokens: int64 (B, T), padded with 0.
        lengths: int64 (B,), number of tokens of each caption, 1 ≤ length ≤ T; always on the CPU,
            where captions are sorted by them (:func:`~t2i_hpc.common.transfer.to_device` takes
            them to the device without a wait).
        classes: int64 (B,), class of each image; unique numbers where there are no classes.
        positions: int64 (B,), the samples' positions in the endless stream; always on the CPU,
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
        """Return the batch with its tensors on `device`, lengths and positions excepted."""
        names = ("images", "tokens", "classes")
        moved = {name: getattr(self, name).to(device, non_blocking=True) for name in names}
        return replace(self, **moved)


@dataclass(frozen=True)
class Texts:
    """The strings of a batch; everything else of it is in the block."""

    captions: Sequence[str]
    keys: Sequence[str]


@dataclass(frozen=True)
class Arrays:
    """The numbers of a batch, to be filled: shapes as in :class:`Batch`, images (B, R, R, 3)."""

    images: npt.NDArray[np.uint8]
    tokens: I64
    lengths: I64
    classes: I64
    positions: I64


@dataclass(frozen=True)
class Layout:
    """How a block is divided: samples, side of the images in pixels, tokens of a caption."""

    samples: int
    resolution: int
    max_tokens: int

    @property
    def bytes(self) -> int:
        """Bytes of a block."""
        return sum(math.prod(shape) * kind.itemsize for shape, kind in self._shapes().values())

    def new(self) -> Tensor:
        """Return a block, uint8 (bytes,); pinned where this process has a GPU to fetch it."""
        return torch.empty(self.bytes, dtype=torch.uint8, pin_memory=torch.cuda.is_initialized())

    def arrays(self, block: Tensor) -> Arrays:
        """View a block as arrays to fill."""
        return Arrays(**{name: view.numpy() for name, view in self._views(block).items()})

    def batch(self, block: Tensor, texts: Texts) -> Batch:
        """View a block as a batch; texts are the rest of it."""
        views = self._views(block)
        images = views.pop("images").permute(0, 3, 1, 2)
        return Batch(images=images, captions=texts.captions, keys=texts.keys, **views)

    def _views(self, block: Tensor) -> dict[str, Tensor]:
        views, begin = {}, 0
        for name, (shape, kind) in self._shapes().items():
            count = math.prod(shape) * kind.itemsize
            views[name] = block[begin : begin + count].view(kind).view(shape)
            begin += count
        return views

    def _shapes(self) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        """Return shape and type by name; integers first, where they are aligned."""
        one, side = (self.samples,), self.resolution
        return {
            "tokens": ((self.samples, self.max_tokens), torch.int64),
            "lengths": (one, torch.int64),
            "classes": (one, torch.int64),
            "positions": (one, torch.int64),
            "images": ((self.samples, side, side, 3), torch.uint8),
        }


class Draws(NamedTuple):
    """The random numbers of a sample, each from [0, 1)."""

    caption: float
    down: float
    across: float
    mirror: float


@dataclass(frozen=True)
class BatchPlan:
    """What a batch is made of.

    Attributes:
        positions: places in the endless stream.
        samples: the sample at each position; empty where nobody knows beforehand.
        draws: the random numbers of each position.
    """

    positions: Sequence[int]
    samples: Sequence[int]
    draws: Sequence[Draws]


class BatchMaker(ABC):
    """Makes batches, into arrays that it is given.

    Args:
        vocabulary: of the captions.
        config: max_tokens, resize_ratio and flip.
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
    def plan(self, batches: Iterable[Sequence[int]]) -> Iterator[BatchPlan]:
        """Say what each of some batches, given by positions, is made of."""

    @abstractmethod
    def _sample(self, plan: BatchPlan, row: int) -> tuple[StoredSample, Pixels]:
        """Return a sample of a batch, and its image cropped to (R, R, 3).

        The pixels need not outlive the next call.
        """

    def reads(self) -> tuple[int, int, int]:
        """Return samples whose shard was here, those that had to wait for it, and bytes fetched."""
        return 0, 0, 0

    def draws(self, positions: Sequence[int]) -> list[Draws]:
        """Return the random numbers of some positions."""
        rows = uniform(self.seed, positions, len(Draws._fields)).tolist()
        return [Draws(*row) for row in rows]

    def layout(self, samples: int) -> Layout:
        """Return the layout of a batch of some samples."""
        return Layout(samples, self.resolution, self.max_tokens)

    def fill(self, plan: BatchPlan, arrays: Arrays) -> Texts:
        """Make a batch, into arrays of its size.

        Raises:
            DataError: a sample cannot be read or decoded.
        """
        arrays.positions[:] = plan.positions
        arrays.tokens[:] = PADDING
        captions, keys = [], []
        for row, (position, drawn) in enumerate(zip(plan.positions, plan.draws, strict=True)):
            stored, pixels = self._sample(plan, row)
            caption = stored.captions[int(drawn.caption * len(stored.captions))]
            chosen_by = self.seed, "words of a training sample", position
            tokens = encode_caption(caption, self.vocabulary, self.max_tokens, chosen_by)
            arrays.tokens[row, : len(tokens)] = tokens
            arrays.lengths[row], arrays.classes[row] = len(tokens), stored.class_id
            if self.flip and drawn.mirror < 0.5:
                _mirror(pixels, arrays.images[row])
            else:
                arrays.images[row] = pixels
            captions.append(caption)
            keys.append(stored.key)
        return Texts(captions, keys)


def _mirror(image: Pixels, target: Pixels) -> None:
    """Write an image (height, width, 3) mirrored; torch does it six times as fast as NumPy."""
    readable = image if image.flags.writeable else np.array(image)
    flipped = torch.flip(torch.from_numpy(readable).permute(2, 0, 1), (2,))
    torch.from_numpy(target).permute(2, 0, 1).copy_(flipped)
