"""How metrics keep sums over images: a collector sees batches and keeps arrays that add up.

The sums of all collectors are one flat mapping of arrays, so that a shard's file, its hash and
the merge need not know what they mean (:mod:`t2i_hpc.runs.partial_statistics`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from torch import Tensor

from t2i_hpc.runs.partial_statistics import Arrays

Groups = npt.NDArray[np.int64]


@dataclass(frozen=True)
class FeatureBatch:
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

    def add(self, batch: FeatureBatch) -> None:
        """Add the images of a batch."""

    def arrays(self) -> Arrays:
        """Return the sums as arrays that add up over shards."""


@dataclass(frozen=True)
class Statistic:
    """The sums that one metric needs of an image set.

    Attributes:
        names: of the collector's arrays.
        start: makes a fresh collector for one shard.
        key: hash of the settings that these sums alone depend on, "" where the set says it all.
        wanted: whether a shard without them is incomplete; others are kept where a shard is
            computed anyway.
    """

    names: Sequence[str]
    start: Callable[[], Collector]
    key: str = ""
    wanted: bool = True

    def to_file(self, arrays: Arrays) -> dict[str, npt.NDArray[Any]]:
        """Return a collector's arrays under their names in a shard's file."""
        return {self._name(name): value for name, value in arrays.items()}

    def from_file(self, sums: Arrays) -> dict[str, npt.NDArray[Any]]:
        """Return this statistic's arrays from all that a shard's file holds."""
        return {name: sums[self._name(name)] for name in self.names}

    @property
    def stored(self) -> frozenset[str]:
        """The names of its arrays in a shard's file."""
        return frozenset(map(self._name, self.names))

    def _name(self, name: str) -> str:
        return f"{name}.{self.key}" if self.key else name


def groups_of(images: int, groups: int, seed: int) -> Groups:
    """Return the group of each image, int64 (images,): 0 … `groups` − 1.

    Splits of the Inception score and folds of R-precision are such groups: the images are
    shuffled and cut into runs that differ in length by at most one. The group of image i never
    depends on its shard, so sums of groups add up. NumPy's old generator is frozen by its makers,
    and torch-fidelity shuffles with it: the same seed gives the same splits there and here.

    Args:
        images: number of images.
        groups: number of groups, 1 ≤ groups ≤ images.
        seed: 0 ≤ seed < 2³².
    """
    order = np.random.RandomState(seed).permutation(images)
    bounds = [group * images // groups for group in range(groups + 1)]
    member = np.empty(images, dtype=np.int64)
    for group in range(groups):
        member[order[bounds[group] : bounds[group + 1]]] = group
    return member
