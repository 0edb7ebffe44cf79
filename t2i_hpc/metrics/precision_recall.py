"""Precision and recall of generated images (Kynkäänniemi et al., NeurIPS 2019).

An image is covered by a set when it lies in the ball of one of its images, whose radius is the
distance to that image's k-th nearest neighbour in the set. Precision is the share of generated
images that the real ones cover, recall the share of real images that the generated ones cover.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from t2i_hpc.common.errors import EvaluationError
from t2i_hpc.metrics.kernel_distance import Rows

_AT_ONCE = 1024  # rows of a distance matrix, so that 30,000 columns take 120 MB


def precision_and_recall(
    generated: Rows, real: Rows, neighbourhood: int, device: torch.device
) -> tuple[float, float]:
    """Return precision and recall, both in [0, 1].

    Args:
        generated: features, float (N, D).
        real: the other side's, float (M, D).
        neighbourhood: k, less than N and M.
        device: where distances are computed, in float32.

    Raises:
        EvaluationError: a side has no k-th neighbour.
    """
    arrays = (np.array(rows, dtype=np.float32) for rows in (generated, real))
    sides = [torch.from_numpy(array).to(device) for array in arrays]
    for side, rows in zip(("generated", "real"), sides, strict=True):
        if len(rows) <= neighbourhood:
            raise EvaluationError(
                f"{len(rows)} {side} images have no neighbour number {neighbourhood}: evaluate "
                "more, or take a smaller evaluation.neighbourhood"
            )
    radii = [_radii(rows, neighbourhood) for rows in sides]
    return _covered(sides[0], sides[1], radii[1]), _covered(sides[1], sides[0], radii[0])


def _radii(rows: Tensor, neighbourhood: int) -> Tensor:
    """Return the distance of each row to its k-th nearest other one, (N,)."""
    # The nearest of all is the row itself.
    nearest = [_distances(part, rows).kthvalue(neighbourhood + 1) for part in rows.split(_AT_ONCE)]
    return torch.cat([found.values for found in nearest])


def _covered(points: Tensor, centres: Tensor, radii: Tensor) -> float:
    inside = [(_distances(p, centres) <= radii).any(dim=1) for p in points.split(_AT_ONCE)]
    return float(torch.cat(inside).double().mean())


def _distances(first: Tensor, second: Tensor) -> Tensor:
    return torch.cdist(first, second)
