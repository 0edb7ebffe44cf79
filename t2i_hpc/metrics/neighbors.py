"""Nearest neighbors in feature space: bounds from one matrix product, exact answers from pairs.

A matrix product in float32 compares an image with all others, but not exactly: a distance comes
out of the difference of large numbers, and rounds in another way in another block. So products
give bounds alone, around a center that both sides share. What the bounds leave open is computed
for single pairs as a sum of squared differences. A distance that decides thus has one arithmetic:
equal images are at distance 0 however many there are, and an offset that all features share
rounds nothing away.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

_AT_ONCE = 1024  # rows of a matrix of bounds, so that 30,000 columns take 120 MB
_CANDIDATES = 32  # neighbors of a point that may stay open before it is compared with all
_OF_BLOCK = 8  # of these, how many a block of earlier points may add
_GROUP = 16  # columns that one comparison passes over
_PAIR_VALUES = 2**19  # of pairs at once, so that they stay in a cache
_COLUMNS = 2048  # of a float64 matrix at once


@dataclass(frozen=True)
class Points:
    """The images of a side.

    Attributes:
        rows: features less a center that sides share, float32 (N, D).
    """

    rows: Tensor

    @cached_property
    def squares(self) -> Tensor:
        """Squared lengths, float32 (N,)."""
        return self.rows.square().sum(1)

    @property
    def slack(self) -> float:
        """Rounding of a product, relative to the squared lengths of its two points."""
        return 1e-5 + self.rows.shape[1] * 2.0**-24


def points_of(*sides: Tensor) -> list[Points]:
    """Return sides around the center of all of them.

    Args:
        sides: features, float32 (N, D) each.
    """
    total = torch.stack([rows.sum(0, dtype=torch.float64) for rows in sides]).sum(0)
    center = (total / sum(map(len, sides))).float()
    return [Points(rows - center) for rows in sides]


def squared_radii(points: Points, k: int) -> Tensor:
    """Return the squared distance of each point to its k-th nearest other one, float64 (N,).

    Args:
        points: N points.
        k: less than N.
    """
    rows, kept = points.rows, max(_CANDIDATES, 2 * k)
    radii = torch.empty(len(rows), dtype=torch.float64, device=rows.device)
    nearest = _nearest(points, kept, max(_OF_BLOCK, 2 * k))
    crowded = []
    for own in _blocks(points):
        limit = radii[own] = _kth(points, own, nearest.columns[own], nearest.lower[own], k)
        crowded.append(own[nearest.dropped[own] <= limit])
    for own in _joined(crowded, rows):
        apart = _all_distances(points, own, points)
        apart[torch.arange(len(own), device=own.device), own] = torch.inf
        near = apart.topk(min(kept, len(rows) - 1), largest=False).indices
        radii[own] = _distances(points, own[:, None], points, near).kthvalue(k).values
    return radii


@dataclass(frozen=True)
class _Nearest:
    """For each point those others that are nearest by lower bounds of squared distances.

    Attributes:
        lower: bounds, ascending, float32 (N, C); infinite where there are fewer others.
        columns: which points they are of, int64 (N, C).
        dropped: no point that is not among them has a smaller bound, float32 (N,).
    """

    lower: Tensor
    columns: Tensor
    dropped: Tensor

    def add(self, own: slice, bounds: Tensor, first: int, wanted: int) -> None:
        """Take the `wanted` smallest bounds (n, m) of points to others, from number `first` on."""
        wanted = min(wanted, bounds.shape[1])
        smallest, columns = _smallest(bounds, wanted)
        if wanted < bounds.shape[1]:
            self.dropped[own] = torch.minimum(self.dropped[own], smallest[:, -1])
        lower = torch.cat([self.lower[own], smallest], 1)
        columns = torch.cat([self.columns[own], columns + first], 1)
        self.lower[own], kept = lower.topk(self.lower.shape[1], largest=False)
        self.columns[own] = columns.gather(1, kept)
        self.dropped[own] = torch.minimum(self.dropped[own], self.lower[own, -1])


def _nearest(points: Points, kept: int, of_block: int) -> _Nearest:
    """Compare each pair of points once: what a block is to later points, they are to it."""
    rows, size = points.rows, (len(points.rows), kept)
    nearest = _Nearest(
        rows.new_full(size, torch.inf),
        torch.zeros(size, dtype=torch.int64, device=rows.device),
        rows.new_full(size[:1], torch.inf),
    )
    shorter = (1 - points.slack) * points.squares
    for first in range(0, len(rows), _AT_ONCE):
        end = min(first + _AT_ONCE, len(rows))
        lower = torch.addmm(shorter[first:], rows[first:end], rows[first:].T, alpha=-2)
        lower += shorter[first:end, None]
        lower.fill_diagonal_(torch.inf)
        nearest.add(slice(first, end), lower, first, kept)
        if end < len(rows):
            nearest.add(slice(end, None), lower[:, end - first :].T, first, of_block)
    return nearest


def covered(
    first: Points, second: Points, first_radii: Tensor, second_radii: Tensor
) -> tuple[Tensor, Tensor]:
    """Return which points of each side lie in a ball of the other side, bool (N,) and (M,).

    Args:
        first, second: N and M points.
        first_radii, second_radii: squared radii of their balls, float64 (N,) and (M,).
    """
    sides, radii = (first, second), (first_radii, second_radii)
    lengths = [(1 - side.slack) * side.squares for side in sides]
    beyond = [
        length - (1 + 2 * side.slack) * reach.float()
        for side, length, reach in zip(sides, lengths, radii, strict=True)
    ]
    inside = [torch.zeros_like(length, dtype=torch.bool) for length in lengths]
    open_: list[list[Tensor]] = [[], []]
    best = torch.full_like(lengths[1], torch.inf)  # of the second side's points so far
    ball = torch.zeros_like(best, dtype=torch.int64)
    for own in _blocks(first):
        products = torch.mm(first.rows[own], second.rows.T).mul_(-2)
        lower, near = (products + beyond[1]).min(1)
        possible = lower + lengths[0][own] <= 0
        hits = _hits(first, own[possible], second, near[possible], second_radii)
        inside[0][own[possible]] = hits
        open_[0].append(own[possible][~hits])
        found, place = products.add_(beyond[0][own, None]).min(0)
        nearer = found < best
        best[nearer], ball[nearer] = found[nearer], own[place[nearer]]
    own = (best + lengths[1] <= 0).nonzero()[:, 0]
    hits = _hits(second, own, first, ball[own], first_radii)
    inside[1][own] = hits
    open_[1].append(own[~hits])
    for side in (0, 1):
        points, centers, reach = sides[side], sides[1 - side], radii[1 - side]
        for own in _joined(open_[side], points.rows):
            apart = _all_distances(points, own, centers) - reach
            near = apart.topk(min(_CANDIDATES, len(reach)), largest=False).indices
            hits = _distances(points, own[:, None], centers, near) <= reach[near]
            inside[side][own] = hits.any(1)
    return inside[0], inside[1]


def _kth(points: Points, own: Tensor, near: Tensor, lower: Tensor, k: int) -> Tensor:
    """Return squared distances to the k-th of the `near`, float64 (n,)."""
    distances = torch.full(near.shape, torch.inf, dtype=torch.float64, device=own.device)
    distances[:, :k] = _distances(points, own[:, None], points, near[:, :k])
    limit = distances[:, :k].amax(1)
    row, place = (lower <= limit[:, None])[:, k:].nonzero(as_tuple=True)
    distances[row, place + k] = _distances(points, own[row], points, near[row, place + k])
    return distances.kthvalue(k).values


def _hits(points: Points, own: Tensor, others: Points, ball: Tensor, radii: Tensor) -> Tensor:
    """Return whether each of the points `own` lies in the ball that is named for it."""
    return _distances(points, own, others, ball) <= radii[ball]


def _distances(points: Points, first: Tensor, others: Points, second: Tensor) -> Tensor:
    """Return the squared distances of pairs, float64, in `second`'s shape."""
    at_once = _PAIR_VALUES // points.rows.shape[1] + 1
    pairs = zip(
        first.expand_as(second).reshape(-1).split(at_once),
        second.reshape(-1).split(at_once),
        strict=True,
    )
    found = []
    for i, j in pairs:
        apart = points.rows.index_select(0, i).sub_(others.rows.index_select(0, j))
        found.append(apart.square_().sum(1, dtype=torch.float64))
    return torch.cat(found).reshape(second.shape)


def _all_distances(points: Points, own: Tensor, others: Points) -> Tensor:
    """Return squared distances of the points `own` to all others, float64, from products."""
    left = points.rows[own].double()
    blocks = []
    for rows in others.rows.split(_COLUMNS):
        right = rows.double()
        blocks.append(right.square().sum(1) - 2 * left @ right.T)
    return torch.cat(blocks, 1) + left.square().sum(1, keepdim=True)


def _smallest(values: Tensor, wanted: int) -> tuple[Tensor, Tensor]:
    """Return the smallest values of each row, ascending, and their columns.

    They lie in the groups of columns with the smallest minima, so most columns are passed over.
    """
    rows, columns = values.shape
    groups = columns // _GROUP
    rest = columns - groups * _GROUP
    if groups < 2 * wanted:
        found = values.topk(wanted, dim=1, largest=False)
        return found.values, found.indices
    minima = values[:, : columns - rest].view(rows, _GROUP, groups).amin(1)
    chosen = minima.topk(wanted, dim=1, largest=False, sorted=False).indices
    steps = groups * torch.arange(_GROUP, device=values.device)
    members = (chosen[:, None, :] + steps[:, None]).reshape(rows, -1)
    last = torch.arange(columns - rest, columns, device=values.device).expand(rows, -1)
    members = torch.cat([members, last], 1)
    found = values.gather(1, members).topk(wanted, dim=1, largest=False)
    return found.values, members.gather(1, found.indices)


def _blocks(points: Points) -> tuple[Tensor, ...]:
    numbers = torch.arange(len(points.rows), device=points.rows.device)
    blocks: tuple[Tensor, ...] = numbers.split(_AT_ONCE)
    return blocks


def _joined(parts: list[Tensor], rows: Tensor) -> tuple[Tensor, ...]:
    """Return points in blocks, perhaps none."""
    empty = torch.empty(0, dtype=torch.int64, device=rows.device)
    joined = torch.cat([empty, *parts])
    blocks: tuple[Tensor, ...] = joined.split(_AT_ONCE) if len(joined) else ()
    return blocks
