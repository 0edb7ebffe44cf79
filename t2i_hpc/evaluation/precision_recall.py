"""Precision and recall of generated images (Kynkäänniemi et al., NeurIPS 2019).

An image is covered by a set if it is in the ball of one of its images, whose radius is the
distance to that image's k-th nearest neighbor in the set. Precision is the share of generated
images that the real ones cover, recall the share of real images that the generated ones cover.
"""

from __future__ import annotations

import torch
from torch import Tensor

from t2i_hpc.evaluation.neighbors import (
    CANDIDATES,
    Neighborhoods,
    Points,
    bounds_fail,
    distances,
    pair_bounds,
    products,
)
from t2i_hpc.evaluation.screening import blocks


def precision_and_recall(balls: Neighborhoods) -> tuple[float, float]:
    """Return precision and recall, both in [0, 1]."""
    inside = covered(balls.generated, balls.real, balls.generated_radii, balls.real_radii)
    precision, recall = (float(found.double().mean()) for found in inside)
    return precision, recall


def covered(
    first: Points, second: Points, first_radii: Tensor, second_radii: Tensor
) -> tuple[Tensor, Tensor]:
    """Return which points of each set are in a ball of the other set, bool (N,) and (M,).

    Args:
        first, second: N and M points.
        first_radii, second_radii: squared radii of their balls, float64 (N,) and (M,).
    """
    inside = [torch.zeros_like(radii, dtype=torch.bool) for radii in (first_radii, second_radii)]
    every = slice(None)
    for own in blocks(len(first_radii)):
        i, j = first.screen.open_pairs(
            own,
            second.screen,
            every,
            rows=first_radii[own],
            columns=second_radii,
            closed=inside[1],
        )
        if bounds_fail(len(i), own.stop - own.start):
            return (
                _covered_by_products(first, second, second_radii),
                _covered_by_products(second, first, first_radii),
            )
        lower, upper = pair_bounds(first, own, second, every, (i, j))
        i = i + own.start
        inside[0][i[upper <= second_radii[j]]] = True
        inside[1][j[upper <= first_radii[i]]] = True
        # Only what may be in a ball that nothing else says it is in is computed.
        left = (lower <= second_radii[j]) & ~inside[0][i]
        left |= (lower <= first_radii[i]) & ~inside[1][j]
        i, j = i[left], j[left]
        apart = distances(first.rows, i, second.rows, j)
        inside[0][i[apart <= second_radii[j]]] = True
        inside[1][j[apart <= first_radii[i]]] = True
    return inside[0], inside[1]


def _covered_by_products(points: Points, centers: Points, radii: Tensor) -> Tensor:
    """Return which points are in a ball, where bounds do not tell points apart."""
    inside = []
    for own in blocks(len(points.rows)):
        apart = products(points, own, centers) - radii
        near = apart.topk(min(CANDIDATES, len(radii)), largest=False).indices
        itself = torch.arange(own.start, own.stop, device=apart.device)
        hits = distances(points.rows, itself[:, None], centers.rows, near) <= radii[near]
        inside.append(hits.any(1))
    return torch.cat(inside)
