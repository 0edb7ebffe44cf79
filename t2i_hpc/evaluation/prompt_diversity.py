"""Per-prompt diversity: how unlike the images of one caption are.

A generator that ignores its noise can have a good Fréchet distance: captions alone make its
images differ. So several images are made of each caption (``evaluation.images_per_caption``), and
the diversity of a caption is the mean cosine distance 1 − cos(x, x′) of the features of all
K (K − 1) / 2 pairs of its images: 0 where all are equal. The score is the mean over captions, its
error bar the standard error over them. SCAD (Kobayashi et al., IJCNN 2025) shows that generators on
pretrained features lose this diversity; the network here is whichever the detector is, so a score
is of one network alone.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from t2i_hpc.common.errors import EvaluationError
from t2i_hpc.runs.partial_statistics import Features

_CAPTIONS = 512  # at once


def caption_diversities(features: Features, images_per_caption: int) -> npt.NDArray[np.float64]:
    """Return the diversity of each caption, float64 (N / K,), in [0, 2].

    Args:
        features: by image number, float (N, D); images of one caption follow each other.
        images_per_caption: K.
    """
    count = len(features) // images_per_caption
    found = np.empty(count)
    for start in range(0, count, _CAPTIONS):
        stop = min(start + _CAPTIONS, count)
        rows = features[start * images_per_caption : stop * images_per_caption]
        grouped = np.asarray(rows, np.float64).reshape(stop - start, images_per_caption, -1)
        found[start:stop] = mean_cosine_distances(grouped)
    return found


def mean_cosine_distances(grouped: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the mean 1 − cos of all pairs of each group, (G,), of features (G, K, D)."""
    size = grouped.shape[1]
    lengths = np.linalg.norm(grouped, axis=2, keepdims=True)
    units = grouped / np.maximum(lengths, 1e-12)
    # |Σ u|² is K and twice the sum of the cosines of all pairs.
    squares = np.square(units.sum(axis=1)).sum(axis=1)
    own = np.square(units).sum(axis=(1, 2))
    distances: npt.NDArray[np.float64] = 1 - (squares - own) / (size * (size - 1))
    return distances


def mean_and_error(diversities: npt.NDArray[np.float64]) -> tuple[float, float | None]:
    """Return the mean over captions and its standard error, None of a single caption."""
    count = len(diversities)
    error = float(diversities.std(ddof=1)) / math.sqrt(count) if count > 1 else None
    return float(diversities.mean()), error


def check_groups(images: int, images_per_caption: int, metric: str) -> None:
    """Refuse images that are not several of each caption.

    Raises:
        EvaluationError: says what to set.
    """
    if images_per_caption < 2:
        raise EvaluationError(
            f"{metric} is of several images of a caption: set evaluation.images_per_caption=8, "
            "or as many as you like"
        )
    if images % images_per_caption:
        whole = max(1, images // images_per_caption) * images_per_caption
        raise EvaluationError(
            f"evaluation.images={images:,} leaves the last caption fewer than "
            f"evaluation.images_per_caption={images_per_caption} images: take {whole:,}"
        )
