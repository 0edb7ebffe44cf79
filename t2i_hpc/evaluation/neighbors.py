"""Which features are near which: distances that decide, of few of all pairs.

Of the distances in feature space most are ruled out by bounds, the rest are computed. Distances of
two images' leading principal coordinates, with the length of what is left of each as one
coordinate more, are never longer than those of the features: they are lower bounds, for all pairs
from one short matrix product. Products of whole features, for the pairs that these leave open
alone, leave few; their distances are sums of squared differences in float64. A distance that
decides thus has one arithmetic: equal images are at distance 0 however many there are, and an
offset that all features share rounds nothing away. Where nearly all images are alike, bounds rule
nothing out, and a product in float64 names the pairs that are computed.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from t2i_hpc.common.errors import EvaluationError
from t2i_hpc.runs.partial_statistics import Features

Pairs = tuple[Tensor, Tensor]

_AT_ONCE = 1024  # rows of a matrix of bounds, so that 30,000 columns take 120 MB
_LEADING = 512  # principal coordinates that bounds compare
_SAMPLE = 8192  # images of a set that the principal axes are computed from
_BEYOND = 32  # directions more than are wanted, which sharpens the last of them
_SOME = 4  # one in so many points is asked for a first neighbors
_NARROW = 512  # open pairs a point with which bounds save nothing
CANDIDATES = 32  # neighbors by a product in float64 that are computed
_PAIR_VALUES = 2**17  # of pairs at once, so that they stay in a core's own cache
_COLUMNS = 2048  # of a float64 matrix at once


def check_neighbors(neighbors: int, images: int, name: str) -> None:
    """Refuse more neighbors than an image set has.

    Raises:
        EvaluationError: says what to set.
    """
    if images <= neighbors:
        raise EvaluationError(
            f"{images} {name} images have no neighbor number {neighbors}: evaluate more, or "
            "take a smaller evaluation.neighbors"
        )


@dataclass(frozen=True)
class Points:
    """The images of a set.

    Attributes:
        rows: features less a center that both sets share, float32 (N, D).
        short: coordinates whose distances are never longer, float32 (N, C).
    """

    rows: Tensor
    short: Tensor

    @cached_property
    def short_squares(self) -> Tensor:
        """Squared lengths of `short`, a little less than rounding makes them, float32 (N,)."""
        return self._less(self.short)

    @cached_property
    def squares(self) -> Tensor:
        """Squared lengths of `rows`, a little less than rounding makes them, float32 (N,)."""
        return self._less(self.rows)

    def _less(self, values: Tensor) -> Tensor:
        slack = 1e-5 + self.rows.shape[1] * 2.0**-24  # of products, and of the axes
        squares = [values[own].square().sum(1) for own in blocks(len(values))]
        return (1 - slack) * torch.cat(squares)


@dataclass(frozen=True)
class Neighborhoods:
    """Generated and real images in one space, each with a ball to its k-th nearest other one.

    Attributes:
        generated, real: N and M points.
        neighbors: k.
    """

    generated: Points
    real: Points
    neighbors: int

    @classmethod
    def of(
        cls, generated: Features, real: Features, neighbors: int, device: torch.device
    ) -> Neighborhoods:
        """Take the features of two sets.

        Args:
            generated, real: float (N, D) and (M, D); may be memory-mapped.
            neighbors: k, less than N and M.
            device: of the distances.

        Raises:
            EvaluationError: a set has no k-th neighbor.
        """
        arrays = (np.array(rows, dtype=np.float32) for rows in (generated, real))
        both = [torch.from_numpy(array).to(device) for array in arrays]
        for name, rows in zip(("generated", "real"), both, strict=True):
            check_neighbors(neighbors, len(rows), name)
        first, second = points_of(*both)  # which moves the copies
        return cls(first, second, neighbors)

    @cached_property
    def generated_radii(self) -> Tensor:
        """Squared radii of the generated images' balls, float64 (N,)."""
        return squared_radii(self.generated, self.neighbors)

    @cached_property
    def real_radii(self) -> Tensor:
        """Squared radii of the real images' balls, float64 (M,)."""
        return squared_radii(self.real, self.neighbors)


def points_of(*sets: Tensor) -> list[Points]:
    """Return sets around the center of all of them, with principal axes of all of them.

    Args:
        sets: features, float32 (N, D) each; moved to the center in place, for they are large.
    """
    total = torch.stack([rows.sum(0, dtype=torch.float64) for rows in sets]).sum(0)
    center = (total / sum(map(len, sets))).float()
    centered = [rows.sub_(center) for rows in sets]
    if len(center) <= _LEADING + _BEYOND:
        return [Points(rows, rows) for rows in centered]
    axes = _axes(torch.cat([rows[:: -(-len(rows) // _SAMPLE)] for rows in centered]))
    return [Points(rows, _shortened(rows, axes)) for rows in centered]


def _axes(some: Tensor) -> Tensor:
    """Return about the principal axes, orthonormal, float32 (D, C).

    Any orthonormal axes give lower bounds: how near they are to the principal ones decides how many
    pairs are left open, so a randomized range with two powers will do (Halko et al., 2011).
    """
    products = some.T @ some
    draws = torch.Generator().manual_seed(0)
    found = torch.randn(len(products), _LEADING + _BEYOND, generator=draws).to(some.device)
    for _ in range(3):
        found = torch.linalg.qr(products @ found).Q
    small = found.T @ products @ found
    turned = found @ torch.linalg.eigh(small).eigenvectors[:, -_LEADING:]
    axes: Tensor = torch.linalg.qr(turned).Q
    return axes


def _shortened(rows: Tensor, axes: Tensor) -> Tensor:
    short = rows.new_empty(len(rows), axes.shape[1] + 1)
    for own in blocks(len(rows)):  # so that what is left of each is never there of all
        leading = rows[own] @ axes
        rest = torch.addmm(rows[own], leading, axes.T, alpha=-1)
        short[own, :-1], short[own, -1] = leading, rest.norm(dim=1)
    return short


def squared_radii(points: Points, k: int) -> Tensor:
    """Return the squared distance of each point to its k-th nearest other one, float64 (N,).

    Args:
        points: N points.
        k: less than N.
    """
    count, near = len(points.rows), rounded_up(_within(points, k))
    pairs: list[tuple[Tensor, Tensor, Tensor]] = []
    for own in blocks(count):
        later = slice(own.start, None)  # each pair once: what i is to j, j is to i
        lower = bounds(points, own, points, later)
        open_ = (lower <= near[own, None]).logical_or_(lower <= near[later])
        width = own.stop - own.start
        open_[:, :width] = open_[:, :width].triu(1)
        i, j = open_.nonzero(as_tuple=True)
        if bounds_fail(len(i), width):
            return _radii_by_products(points, k)
        closer = pair_bounds(points, own, points, later, (i, j))
        i, j = i + own.start, j + own.start
        left = closer <= torch.maximum(near[i], near[j])
        i, j = i[left], j[left]
        pairs.append((i, j, distances(points, i, points, j)))
    i, j, apart = map(torch.cat, zip(*pairs, strict=True))
    return _kth_of_each(torch.cat([i, j]), torch.cat([apart, apart]), k, count)


def bounds(points: Points, own: slice, others: Points, which: slice) -> Tensor:
    """Return lower bounds of the squared distances of points to others, float32 (n, m)."""
    left, right = points.short[own], others.short[which]
    lower = torch.addmm(others.short_squares[which], left, right.T, alpha=-2)
    return lower.add_(points.short_squares[own, None])


def pair_bounds(points: Points, own: slice, others: Points, which: slice, pairs: Pairs) -> Tensor:
    """Return lower bounds of the squared distances of pairs, from whole features, float32 (p,).

    Args:
        points, own: the first of a pair is number i of these.
        others, which: the second is number j of these.
        pairs: i ascending, and j, int64 (p,) each.
    """
    left, right = points.rows[own], others.rows[which]
    i, j = pairs
    starts = torch.searchsorted(i, torch.arange(len(left) + 1, device=i.device))
    size = (len(left), len(right))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
        wanted = torch.sparse_csr_tensor(
            starts, j, left.new_zeros(len(j)), size, check_invariants=False
        )
        products: Tensor = torch.sparse.sampled_addmm(
            wanted, left, right.T, beta=0, alpha=-2
        ).values()
    return products + points.squares[own][i] + others.squares[which][j]


def _within(points: Points, k: int) -> Tensor:
    """Return squared distances within which each point has k others, float64 (N,)."""
    count = len(points.rows)
    step = _SOME if count > 2 * k * _SOME else 1
    wanted = min(2 * k + 2, len(range(0, count, step)) - 1)
    limits = []
    for own in blocks(count):
        lower = bounds(points, own, points, slice(None, None, step))
        itself = torch.arange(own.start, own.stop, device=lower.device)
        among = itself % step == 0
        lower[among, itself[among] // step] = torch.inf
        near = step * lower.topk(wanted, largest=False).indices
        limits.append(distances(points, itself[:, None], points, near).kthvalue(k).values)
    return torch.cat(limits)


def _kth_of_each(rows: Tensor, values: Tensor, k: int, count: int) -> Tensor:
    """Return the k-th smallest value of each of `count` rows that has k of them, (count,)."""
    order = values.argsort()
    order = order[rows[order].argsort(stable=True)]
    first = torch.searchsorted(rows[order], torch.arange(count, device=rows.device))
    return values[order[first + k - 1]]


def _radii_by_products(points: Points, k: int) -> Tensor:
    """Return :func:`squared_radii` of points that bounds do not tell apart."""
    radii = []
    for own in blocks(len(points.rows)):
        apart = products(points, own, points)
        itself = torch.arange(own.start, own.stop, device=apart.device)
        apart[itself - own.start, itself] = torch.inf
        wanted = min(max(CANDIDATES, 2 * k), len(points.rows) - 1)
        near = apart.topk(wanted, largest=False).indices
        radii.append(distances(points, itself[:, None], points, near).kthvalue(k).values)
    return torch.cat(radii)


def products(points: Points, own: slice, others: Points) -> Tensor:
    """Return squared distances to all others as products give them, float64 (n, M)."""
    left = points.rows[own].double()
    columns = []
    for rows in others.rows.split(_COLUMNS):
        right = rows.double()
        columns.append(right.square().sum(1) - 2 * left @ right.T)
    return torch.cat(columns, 1) + left.square().sum(1, keepdim=True)


def distances(points: Points, first: Tensor, others: Points, second: Tensor) -> Tensor:
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


def bounds_fail(open_pairs: int, points: int) -> bool:
    """Whether bounds left so many pairs of some points open that products are cheaper."""
    return open_pairs > _NARROW * points


def rounded_up(values: Tensor) -> Tensor:
    """Return float64 values as float32 ones that are not smaller."""
    return (values * (1 + 2.0**-22)).float()


def blocks(count: int) -> Iterator[slice]:
    """Yield slices of so many points that matrices of bounds stay small."""
    for start in range(0, count, _AT_ONCE):
        yield slice(start, min(start + _AT_ONCE, count))
