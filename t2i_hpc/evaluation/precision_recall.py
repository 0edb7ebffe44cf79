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
    blocks,
    bounds,
    bounds_fail,
    distances,
    pair_bounds,
    products,
    rounded_up,
)


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
    reach = [rounded_up(radii) for radii in (first_radii, second_radii)]
    for own in blocks(len(first_radii)):
        lower = bounds(first, own, second, slice(None))
        open_ = (lower <= reach[0][own, None]).logical_and_(~inside[1])
        open_.logical_or_(lower <= reach[1])
        i, j = open_.nonzero(as_tuple=True)
        if bounds_fail(len(i), len(lower)):
            return (
                _covered_by_products(first, second, second_radii),
                _covered_by_products(second, first, first_radii),
            )
        closer = pair_bounds(first, own, second, slice(None), (i, j))
        i = i + own.start
        left = torch.logical_or(closer <= reach[0][i], closer <= reach[1][j])
        i, j = i[left], j[left]
        apart = distances(first, i, second, j)
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
        hits = distances(points, itself[:, None], centers, near) <= radii[near]
        inside.append(hits.any(1))
    return torch.cat(inside)
