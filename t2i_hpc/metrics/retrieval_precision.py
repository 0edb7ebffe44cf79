"""R-precision from counts: how often the caption that an image was made of wins.

AttnGAN (Xu et al., CVPR 2018, §4) lets each generated image choose among its own caption and
99 captions of other images. DM-GAN's released code, which made the published numbers, cuts the
images into 10 shuffled folds and states mean and standard deviation over them. Hits and images
of each fold are integers, so any division into parts gives the same counts.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from torch import Tensor

from t2i_hpc.metrics.folds import Groups
from t2i_hpc.metrics.sums import Arrays, Seen

COUNT, HITS = "fold_count", "fold_hits"
NAMES = (COUNT, HITS)
Judge = Callable[[range, Tensor], npt.NDArray[np.bool_]]


class RetrievalCounts:
    """Images and hits of each fold.

    Args:
        folds: the fold of each image of the side, int64 (images,).
        count: number of folds.
        judge: says of images, by number and pixels, whether their own caption wins: bool (n,).
    """

    def __init__(self, folds: Groups, count: int, judge: Judge) -> None:
        self._folds, self._judge = folds, judge
        self._count = np.zeros(count, dtype=np.int64)
        self._hits = np.zeros(count, dtype=np.int64)

    def add(self, seen: Seen) -> None:
        """Judge the images of a batch."""
        folds = self._folds[seen.numbers.start : seen.numbers.stop]
        hits = self._judge(seen.numbers, seen.images)
        self._count += np.bincount(folds, minlength=len(self._count))
        self._hits += np.bincount(folds[hits], minlength=len(self._hits))

    def arrays(self) -> Arrays:
        """Return the counts, int64 (folds,) each."""
        return {COUNT: self._count, HITS: self._hits}


def r_precision(counts: Arrays) -> tuple[float, float]:
    """Return the mean share of hits over folds and its standard deviation, both in [0, 1]."""
    shares = counts[HITS] / counts[COUNT]
    return float(shares.mean()), float(shares.std())
