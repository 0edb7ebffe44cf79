"""Nearest neighbors in feature space: exact answers, nearly all of them from few coordinates.

To compare 30,000 images with 30,000 others in 2,048 coordinates is what precision and recall
cost. Features lie near a much smaller space, and a distance in some leading coordinates is never
longer than the true one. So all pairs are compared in the first of them, which leaves some
neighbors of each image open; most of those fall to more coordinates; the rest are computed in
float64 as sums of squared differences. A distance that decides thus has one arithmetic: equal
images are at distance 0 however many there are, and an offset that all features share rounds
nothing away.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

_FIRST, _MORE = 160, 512  # leading coordinates that all pairs, and that open pairs, are compared in
_SAMPLE = 1024  # images of each side that they are found from
_AT_ONCE = 1024  # rows of a matrix of bounds, so that 30,000 columns take 120 MB
_CANDIDATES = 256  # neighbors of a point that may stay open before it is compared with all
_GROUP = 8  # columns that one comparison passes over
_TRIED = 8  # neighbors that are computed at once
_PAIR_VALUES = 2**19  # of pairs at once, so that they stay in a cache
_COLUMNS = 2048  # of a matrix of distances in all coordinates at once
_SLACK = 1e-4  # rounding of a bound, relative to the squared lengths of its two points


@dataclass(frozen=True)
class Points:
    """The images of a side.

    Attributes:
        rows: features, float32 (N, D).
        leading: coordinates in which no distance is longer than it is, float32 (N, q).
        centre: amid the sides, float32 (D,).
    """

    rows: Tensor
    leading: Tensor
    centre: Tensor

    @cached_property
    def squares(self) -> Tensor:
        """Squared lengths of the leading coordinates, float32 (N,)."""
        return self.leading.square().sum(1)

    @property
    def first(self) -> Tensor:
        """Those coordinates that all pairs are compared in, float32 (N, ≤ q)."""
        return self.leading[:, :_FIRST]


def points_of(*sides: Tensor) -> list[Points]:
    """Return sides with leading coordinates that they share.

    Args:
        sides: features, float32 (N, D) each.
    """
    sample = torch.cat([rows[:: -(-len(rows) // _SAMPLE)] for rows in sides])
    centre = sample.mean(0)
    basis = _leading(sample - centre)
    return [Points(rows, _coordinates(rows, centre, basis), centre) for rows in sides]


def squared_radii(points: Points, k: int) -> Tensor:
    """Return the squared distance of each point to its k-th nearest other one, float64 (N,).

    Args:
        points: N points.
        k: less than N.
    """
    radii = torch.empty(len(points.rows), dtype=torch.float64, device=points.rows.device)
    bounds = _Bounds(points, points, torch.zeros_like(radii), max(_CANDIDATES, 2 * k))
    open_ = []
    for own in _blocks(points):
        radii[own], undecided = _kth(bounds, own, k)
        open_.append(own[undecided])
    for own in torch.cat(open_).split(_AT_ONCE):
        distances = _all_distances(points, own, points)
        distances[torch.arange(len(own)), own] = torch.inf
        near = distances.topk(min(max(_CANDIDATES, 2 * k), len(points.rows) - 1), largest=False)
        radii[own] = _distances(points, own[:, None], points, near.indices).kthvalue(k).values
    return radii


def covered(points: Points, centres: Points, radii: Tensor) -> Tensor:
    """Return whether each point lies in the ball of a centre, bool (N,).

    Args:
        points: N points.
        centres: M points.
        radii: squared radii of their balls, float64 (M,).
    """
    inside = torch.zeros(len(points.rows), dtype=torch.bool, device=points.rows.device)
    bounds = _Bounds(points, centres, radii, _CANDIDATES)
    open_ = []
    for own in _blocks(points):
        inside[own], undecided = _inside(bounds, own, radii)
        open_.append(own[undecided])
    for own in torch.cat(open_).split(_AT_ONCE):
        beyond = _all_distances(points, own, centres) - radii
        near = beyond.topk(min(_CANDIDATES, len(radii)), largest=False).indices
        inside[own] = (_distances(points, own[:, None], centres, near) <= radii[near]).any(1)
    return inside


class _Bounds:
    """Lower bounds of |x_i - y_j|² - r_j of all pairs, as one matrix product a block."""

    def __init__(self, points: Points, others: Points, radii: Tensor, candidates: int) -> None:
        self.points, self.others = points, others
        self.count = len(others.rows) - (points is others)  # that a point is compared with
        self._candidates = min(candidates, self.count)
        columns, width = others.first.shape
        padded = -(-columns // _GROUP) * _GROUP
        self._right = others.first.new_full((width + 1, padded), torch.inf)
        self._right[:-1] = 0
        self._right[:-1, :columns] = -2 * others.first.T
        self._right[-1, :columns] = _shortened(others) - (1 + _SLACK) * radii.float()

    def nearest(self, own: Tensor) -> tuple[Tensor, Tensor]:
        """Return the smallest bounds of the points `own`, ascending, and whose they are."""
        first = self.points.first[own]
        bounds = torch.cat([first, first.new_ones(len(own), 1)], 1) @ self._right
        if self.points is self.others:
            bounds[torch.arange(len(own), device=own.device), own] = torch.inf
        smallest, near = _smallest(bounds, self._candidates)
        return smallest + _shortened(self.points)[own, None], near

    def closer(self, own: Tensor, near: Tensor) -> Tensor:
        """Return tighter lower bounds of the squared distances of pairs, in all coordinates."""
        found = _pairwise(self.points.leading, own, self.others.leading, near)
        rounding = self.points.squares[own] + self.others.squares[near]
        return (1 - _SLACK) * found - _SLACK / 100 * rounding

    def exact(self, own: Tensor, near: Tensor) -> Tensor:
        """Return the squared distances of pairs."""
        return _distances(self.points, own, self.others, near)


def _kth(bounds: _Bounds, own: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return squared distances to the k-th neighbors, and for which points others may be nearer."""
    lower, near = bounds.nearest(own)
    distances = torch.full(near.shape, torch.inf, dtype=torch.float64, device=own.device)
    tried = min(max(k, _TRIED), near.shape[1])
    distances[:, :tried] = bounds.exact(own[:, None], near[:, :tried])
    limit = distances[:, :tried].kthvalue(k).values
    row, place = (lower <= limit[:, None])[:, tried:].nonzero(as_tuple=True)
    place += tried
    still = bounds.closer(own[row], near[row, place]) <= limit[row]
    row, place = row[still], place[still]
    distances[row, place] = bounds.exact(own[row], near[row, place])
    limit = distances.kthvalue(k).values
    return limit, (lower[:, -1] <= limit) & (near.shape[1] < bounds.count)


def _inside(bounds: _Bounds, own: Tensor, radii: Tensor) -> tuple[Tensor, Tensor]:
    """Return which points are in a ball, and which others may be."""
    lower, near = bounds.nearest(own)
    inside = torch.zeros(len(own), dtype=torch.bool, device=own.device)
    for places in torch.arange(near.shape[1], device=own.device).split(_TRIED):
        row, place = (~inside[:, None] & (lower[:, places] <= 0)).nonzero(as_tuple=True)
        ball = near[row, places[place]]
        still = bounds.closer(own[row], ball) <= radii[ball]
        row, ball = row[still], ball[still]
        inside[row[bounds.exact(own[row], ball) <= radii[ball]]] = True
    return inside, ~inside & (lower[:, -1] <= 0) & (near.shape[1] < bounds.count)


def _shortened(points: Points) -> Tensor:
    """Return squared lengths in the first coordinates, less what rounding may have added."""
    return (1 - _SLACK) * points.first.square().sum(1)


def _distances(points: Points, first: Tensor, others: Points, second: Tensor) -> Tensor:
    """Return the squared distances of pairs in all coordinates, float64, in `second`'s shape."""
    return _pairwise(points.rows, first, others.rows, second)


def _pairwise(left: Tensor, first: Tensor, right: Tensor, second: Tensor) -> Tensor:
    at_once = _PAIR_VALUES // left.shape[1] + 1
    pairs = zip(
        first.expand_as(second).reshape(-1).split(at_once),
        second.reshape(-1).split(at_once),
        strict=True,
    )
    found = []
    for i, j in pairs:
        apart = left.index_select(0, i).sub_(right.index_select(0, j))
        found.append(apart.square_().sum(1, dtype=torch.float64))
    return torch.cat(found).reshape(second.shape)


def _all_distances(points: Points, own: Tensor, others: Points) -> Tensor:
    """Return squared distances of the points `own` to all others, float64, from products."""
    centre = points.centre.double()
    left = points.rows[own].double() - centre
    blocks = []
    for rows in others.rows.split(_COLUMNS):
        right = rows.double() - centre
        blocks.append(right.square().sum(1) - 2 * left @ right.T)
    return torch.cat(blocks, 1) + left.square().sum(1, keepdim=True)


def _smallest(values: Tensor, wanted: int) -> tuple[Tensor, Tensor]:
    """Return the smallest values of each row, ascending, and their columns.

    They lie in the groups of columns with the smallest minima, so most columns are passed over.
    """
    rows, columns = values.shape
    groups = columns // _GROUP
    if groups < 2 * wanted:
        found = values.topk(wanted, dim=1, largest=False)
        return found.values, found.indices
    minima = values.view(rows, _GROUP, groups).amin(1)
    chosen = minima.topk(wanted, dim=1, largest=False, sorted=False).indices
    steps = groups * torch.arange(_GROUP, device=values.device)
    members = (chosen[:, None, :] + steps[:, None]).reshape(rows, -1)
    found = values.gather(1, members).topk(wanted, dim=1, largest=False)
    return found.values, members.gather(1, found.indices)


def _leading(sample: Tensor) -> Tensor | None:
    """Return an orthonormal basis (D, q) of the leading coordinates, None for all of them."""
    if min(sample.shape) <= 2 * _FIRST:
        return None
    with torch.random.fork_rng(devices=[sample.device] if sample.is_cuda else []):
        torch.manual_seed(0)  # no result depends on the basis
        return torch.svd_lowrank(sample, q=min(_MORE, *sample.shape), niter=1)[2]


def _coordinates(rows: Tensor, centre: Tensor, basis: Tensor | None) -> Tensor:
    if basis is None:
        return rows - centre
    return torch.cat([(part - centre) @ basis for part in rows.split(_COLUMNS)])


def _blocks(points: Points) -> tuple[Tensor, ...]:
    return torch.arange(len(points.rows), device=points.rows.device).split(_AT_ONCE)
