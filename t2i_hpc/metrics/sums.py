"""What a side of a comparison is summed up to: named arrays that add up over its parts.

A collector looks at batches and keeps sums; the sums of all collectors are one flat mapping of
arrays, so that a part's file, its hash and the merge need not know what they mean. The one
thing that is no sum are the features themselves, which KID and precision/recall need: they are
kept as rows by image number, on request.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy.typing as npt
from torch import Tensor

Arrays = Mapping[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class Seen:
    """The images of a batch that count.

    Attributes:
        numbers: their numbers, n of them.
        images: uint8 (n, 3, R, R).
        features: float32 (n, D) on the detector's device.
        logits: float32 (n, C) on the detector's device; C is 0 without a classifier.
    """

    numbers: range
    images: Tensor
    features: Tensor
    logits: Tensor


class Collector(Protocol):
    """Keeps sums over images."""

    def add(self, seen: Seen) -> None:
        """Add the images of a batch."""

    def arrays(self) -> Arrays:
        """Return the sums as arrays that add up over parts."""


@dataclass(frozen=True)
class Contents:
    """What is kept of the images of a side.

    Attributes:
        names: names of the sums.
        start: makes fresh collectors for one part.
        rows: dtype in which features are kept by image number, "" where they are not.
    """

    names: frozenset[str]
    start: Callable[[], Sequence[Collector]]
    rows: str = ""
