"""FID∞: the Fréchet distance that infinitely many generated images would have.

The distance of N images is biased by about c / N, and c depends on the generator, so that even
distances of equal N may rank two generators wrongly. Chong and Forsyth (CVPR 2020) take it of
random subsets of N / 10 to N images, fit a line over 1 / N, and read it at 0. The bias of the real
images' number stays.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from t2i_hpc.common.errors import EvaluationError
from t2i_hpc.common.terminal import progress
from t2i_hpc.evaluation.fid import Gaussian, Moments, frechet_distance
from t2i_hpc.runs.partial_statistics import Features

Numbers = npt.NDArray[np.int64]
Values = npt.NDArray[np.float64]
_SMALLEST = 10  # the smallest subset is this part of all images, as theirs: 5,000 of 50,000
_FEWEST = 2 * _SMALLEST
_ROWS = 4096


def extrapolated_distance(
    generated: Features, real: Gaussian, *, points: int, seed: int, device: torch.device
) -> tuple[float, float]:
    """Return the line's value for infinitely many images, and that value's standard error.

    Args:
        generated: features by image number, float (N, D).
        real: mean and covariance of the real images.
        points: subsets that the line goes through, 3 or more.
        seed: of the subsets.
        device: of the sums.

    Raises:
        EvaluationError: fewer than 20 images, or features that are NaN or Inf.
    """
    check_images(len(generated))
    counts = subset_sizes(len(generated), points)
    draws = np.random.RandomState(seed)
    distances = np.empty(points)
    with progress("Fréchet distances of subsets", points, "subsets") as advance:
        for place, count in enumerate(counts):
            # A draw of its own for each: nested subsets would share their errors.
            chosen = np.sort(draws.permutation(len(generated))[:count])
            distances[place] = _distance(generated, chosen, real, device)
            advance(1)
    return _at_zero(1 / counts, distances)


def check_images(images: int) -> None:
    """Refuse too few images for subsets of a tenth of them.

    Raises:
        EvaluationError: says what to do.
    """
    if images < _FEWEST:
        raise EvaluationError(
            f"fid_infinity takes subsets of a tenth of the images, and {images} are too few: "
            f"evaluate at least {_FEWEST}, or leave it out of evaluation.metrics"
        )


def subset_sizes(images: int, points: int) -> Numbers:
    """Return how many images each subset has, evenly from a tenth of them to all."""
    return np.linspace(images // _SMALLEST, images, points).astype(np.int64)


def _distance(rows: Features, chosen: Numbers, real: Gaussian, device: torch.device) -> float:
    moments = Moments.empty(rows.shape[1], device)
    for start in range(0, len(chosen), _ROWS):
        block = np.asarray(rows[chosen[start : start + _ROWS]], dtype=np.float32)
        moments.add_rows(torch.from_numpy(block))
    return frechet_distance(moments, real)


def _at_zero(x: Values, y: Values) -> tuple[float, float]:
    """Return a least-squares line's value at 0 and the standard error of that value."""
    middle, spread = x.mean(), np.square(x - x.mean()).sum()
    slope = ((x - middle) * (y - y.mean())).sum() / spread
    value = y.mean() - slope * middle
    left = np.square(y - value - slope * x).sum() / (len(x) - 2)
    return float(value), float(np.sqrt(left * (1 / len(x) + middle**2 / spread)))
