"""The memory of a batch: one block of bytes, seen as arrays to fill or as a batch to train on.

The block may be shared by processes, or pinned so that a GPU fetches it by itself. Images are
kept (B, R, R, 3), the order in which decoders write and crops are whole rows; the batch shows
them as (B, 3, R, R) without moving a byte.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from t2i_hpc.common.step import Batch

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
