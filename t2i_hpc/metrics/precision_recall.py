"""Precision and recall of generated images (Kynkäänniemi et al., NeurIPS 2019).

An image is covered by a set when it lies in the ball of one of its images, whose radius is the
distance to that image's k-th nearest neighbor in the set. Precision is the share of generated
images that the real ones cover, recall the share of real images that the generated ones cover.
"""

from __future__ import annotations

import numpy as np
import torch

from t2i_hpc.common.errors import EvaluationError
from t2i_hpc.metrics.kernel_distance import Rows
from t2i_hpc.metrics.neighbors import covered, points_of, squared_radii


def precision_and_recall(
    generated: Rows, real: Rows, neighbourhood: int, device: torch.device
) -> tuple[float, float]:
    """Return precision and recall, both in [0, 1].

    Args:
        generated: features, float (N, D).
        real: the other side's, float (M, D).
        neighbourhood: k, less than N and M.
        device: where distances are computed.

    Raises:
        EvaluationError: a side has no k-th neighbor.
    """
    arrays = (np.array(rows, dtype=np.float32) for rows in (generated, real))
    sides = [torch.from_numpy(array).to(device) for array in arrays]
    for side, rows in zip(("generated", "real"), sides, strict=True):
        check_neighbors(neighbourhood, len(rows), side)
    first, second = points_of(*sides)
    radii = [squared_radii(points, neighbourhood) for points in (first, second)]
    inside = covered(first, second, *radii)
    precision, recall = (float(found.double().mean()) for found in inside)
    return precision, recall


def check_neighbors(neighbourhood: int, images: int, side: str) -> None:
    """Refuse more neighbors than a side has.

    Raises:
        EvaluationError: says what to set.
    """
    if images <= neighbourhood:
        raise EvaluationError(
            f"{images} {side} images have no neighbor number {neighbourhood}: evaluate more, or "
            "take a smaller evaluation.neighbourhood"
        )
