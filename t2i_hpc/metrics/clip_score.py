"""CLIP score: how well images fit the captions that they were made of.

Hessel et al. (EMNLP 2021) rate an image by max(cos(image, caption), 0) times a constant; theirs
is 2.5, here it is 100, as torchmetrics and the text-to-image literature have it. The score is
the mean over images, so sums of the ratings and of their squares suffice for it and its
standard error.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from torch import Tensor

from t2i_hpc.metrics.sums import Arrays, Seen

COUNT, TOTAL, SQUARES = "clip_count", "clip_total", "clip_squares"
NAMES = (COUNT, TOTAL, SQUARES)
Rate = Callable[[range, Tensor], npt.NDArray[np.float64]]


class RatingSums:
    """Number, sum and sum of squares of the images' ratings.

    Args:
        rate: rates images, by number and pixels uint8 (n, 3, R, R): float64 (n,) in [0, 100].
    """

    def __init__(self, rate: Rate) -> None:
        self._rate = rate
        self._count = np.zeros((), dtype=np.int64)
        self._total, self._squares = np.zeros(()), np.zeros(())

    def add(self, seen: Seen) -> None:
        """Rate the images of a batch."""
        ratings = self._rate(seen.numbers, seen.images)
        self._count += len(ratings)
        self._total += ratings.sum()
        self._squares += (ratings**2).sum()

    def arrays(self) -> Arrays:
        """Return the sums, () each."""
        return {COUNT: self._count, TOTAL: self._total, SQUARES: self._squares}


def clip_score(sums: Arrays) -> tuple[float, float]:
    """Return the mean rating of at least two images and its standard error, both 0 to 100."""
    count = int(sums[COUNT])
    mean = float(sums[TOTAL]) / count
    variance = (float(sums[SQUARES]) - count * mean**2) / (count - 1)
    return mean, math.sqrt(max(variance, 0.0) / count)
