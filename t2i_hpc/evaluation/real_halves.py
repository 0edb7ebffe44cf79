"""What real images get: the Fréchet distance of real images from other real images.

A distance means little without one to hold it against. Here n of the M real images, drawn by the
seed, stand where the generated ones stand, against the other M − n: n is M / 2, or N where fewer
images are generated. A generator as good as the data gets about this distance, since what is left
of it is the bias of few images. FD-loss (2026) divides by such a distance to add up distances of
several networks.

The moments of the n images are kept beside those of all, so any number of shards gives the same
distance, and it is computed once for all runs that share the real images.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch

from t2i_hpc.common.files import write_json
from t2i_hpc.evaluation.collectors import FeatureBatch
from t2i_hpc.evaluation.fid import NAMES as MOMENT_NAMES
from t2i_hpc.evaluation.fid import Moments, frechet_distance
from t2i_hpc.runs.partial_statistics import Arrays

NAMES = tuple(f"half_{name}" for name in MOMENT_NAMES)
FEWEST = 4  # real images: two of either half have a covariance


class HalfMoments:
    """Moments of those real images that stand where generated ones stand.

    Args:
        real: number of real images M.
        half: how many of them are drawn.
        seed: of the draw.
        width: of the features.
        device: of the sums.
    """

    def __init__(self, real: int, half: int, seed: int, width: int, device: torch.device) -> None:
        self._drawn = torch.zeros(real, dtype=torch.bool)
        chosen = np.random.RandomState(seed).permutation(real)[:half]
        self._drawn[torch.from_numpy(chosen)] = True
        self._moments = Moments.empty(width, device)

    def add(self, batch: FeatureBatch) -> None:
        """Add the drawn ones among the images of a batch."""
        drawn = self._drawn[batch.numbers.start : batch.numbers.stop]
        self._moments.add_rows(batch.features[drawn.to(batch.features.device)])

    def arrays(self) -> Arrays:
        """Return the sums, as those of :class:`Moments`."""
        return {f"half_{name}": value for name, value in self._moments.arrays().items()}


def half_size(images: int, real_images: int) -> int:
    """Return n: how many of the real images stand where the generated ones stand."""
    return min(images, real_images // 2)


def real_distance(sums: Arrays, half: Arrays, cache: Path) -> float:
    """Return the Fréchet distance of the drawn real images from the others.

    Args:
        sums: moments of all real images.
        half: of the drawn ones, by :data:`NAMES`.
        cache: file that keeps the distance.

    Raises:
        EvaluationError: features that are NaN or Inf.
    """
    try:
        known: float = json.loads(cache.read_text(encoding="utf-8"))["distance"]
    except (OSError, ValueError, KeyError, TypeError):
        drawn = {name: half[f"half_{name}"] for name in MOMENT_NAMES}
        others = {name: sums[name] - drawn[name] for name in MOMENT_NAMES}
        known = frechet_distance(Moments.from_arrays(drawn), Moments.from_arrays(others))
        write_json(
            cache, {"distance": known, "images": [int(drawn["count"]), int(others["count"])]}
        )
    return known
