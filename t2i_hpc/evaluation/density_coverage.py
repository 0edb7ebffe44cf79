"""Density and coverage of generated images (Naeem et al., ICML 2020).

Real images alone have balls here, whose radius is the distance to the k-th nearest other real one.
Density is the mean number of real balls that a generated image is in, over k; it may exceed 1.
Coverage is the share of real balls that hold a generated image. Unlike precision and recall, one
outlier among the real or generated images moves neither much, and coverage does not grow when the
generated images spread.
"""

from __future__ import annotations

import torch
from torch import Tensor

from t2i_hpc.evaluation.neighbors import (
    Neighborhoods,
    Points,
    bounds_fail,
    distances,
    pair_bounds,
    products,
)
from t2i_hpc.evaluation.screening import blocks

# Products in float64 of features around their center decide but for distances this near a radius.
_SLACK = 1e-9


def density_and_coverage(balls: Neighborhoods) -> tuple[float, float]:
    """Return density, 0 or more, and coverage, in [0, 1]."""
    held = held_by(balls.generated, balls.real, balls.real_radii)
    density = float(held.sum()) / (balls.neighbors * len(balls.generated.rows))
    return density, float((held > 0).double().mean())


def held_by(points: Points, centers: Points, radii: Tensor) -> Tensor:
    """Return how many points each ball holds, its surface included: int64 (M,).

    Args:
        points: N points.
        centers: of M balls.
        radii: their squared radii, float64 (M,).
    """
    held = torch.zeros(len(radii), dtype=torch.int64, device=radii.device)
    every = slice(None)
    for own in blocks(len(points.rows)):
        i, j = points.screen.open_pairs(own, centers.screen, every, columns=radii)
        if bounds_fail(len(i), own.stop - own.start):
            held += _held_by_products(points, own, centers, radii)
            continue
        lower, upper = pair_bounds(points, own, centers, every, (i, j))
        inside = upper <= radii[j]
        left = ((lower <= radii[j]) & ~inside).nonzero()[:, 0]
        i, which = i[left] + own.start, j[left]
        inside[left] = distances(points.rows, i, centers.rows, which) <= radii[which]
        held += j[inside].bincount(minlength=len(radii))
    return held


def _held_by_products(points: Points, own: slice, centers: Points, radii: Tensor) -> Tensor:
    """Return :func:`held_by` of some points, where bounds do not tell points apart."""
    beyond = products(points, own, centers) - radii
    slack = _SLACK * (1 + points.squares[own, None].double() + centers.squares.double())
    i, j = (beyond.abs() <= slack).nonzero(as_tuple=True)
    exact = distances(points.rows, i + own.start, centers.rows, j) - radii[j]
    beyond[i, j] = exact
    return (beyond <= 0).sum(0)
