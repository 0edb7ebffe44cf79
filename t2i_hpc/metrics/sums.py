"""What a side of a comparison is summed up to: named arrays that add up over its parts.

A collector looks at batches and keeps sums; the sums of all collectors are one flat mapping of
arrays, so that a part's file, its hash and the merge need not know what they mean. The one
thing that is no sum are the features themselves, which KID and precision/recall need: they are
kept as rows by image number, on request.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy.typing as npt

if TYPE_CHECKING:  # who only counts files imports no torch
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
class Statistic:
    """The sums that one metric needs of the images of a side.

    Attributes:
        names: of the collector's arrays.
        start: makes a fresh collector for one part.
        key: hash of the settings that these sums alone depend on, "" where the side says it all.
        wanted: whether a part without them is incomplete; others are kept where a part is
            computed anyway.
    """

    names: Sequence[str]
    start: Callable[[], Collector]
    key: str = ""
    wanted: bool = True

    def to_file(self, arrays: Arrays) -> dict[str, npt.NDArray[Any]]:
        """Return a collector's arrays under the names that a part's file has for them."""
        return {self._name(name): value for name, value in arrays.items()}

    def from_file(self, sums: Arrays) -> dict[str, npt.NDArray[Any]]:
        """Return this statistic's arrays from all that a part's file holds."""
        return {name: sums[self._name(name)] for name in self.names}

    @property
    def stored(self) -> frozenset[str]:
        """The names of its arrays in a part's file."""
        return frozenset(map(self._name, self.names))

    def _name(self, name: str) -> str:
        return f"{name}.{self.key}" if self.key else name


@dataclass(frozen=True)
class Contents:
    """What is kept of the images of a side.

    Attributes:
        statistics: the sums.
        rows: dtype in which features are kept by image number, "" where they are not.
    """

    statistics: Sequence[Statistic]
    rows: str = ""

    @property
    def names(self) -> frozenset[str]:
        """The names of the sums without which a part is incomplete."""
        return frozenset().union(*(one.stored for one in self.statistics if one.wanted))
