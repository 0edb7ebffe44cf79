"""Which features are near which: distances that decide, of few of all pairs.

A screen rules most pairs out (:mod:`t2i_hpc.evaluation.screening`). Products of whole features, for
the pairs that it leaves open alone, say within what bounds each distance is; where bounds do not
decide, it is a sum of squared differences in float64. What decides thus has one arithmetic: equal
images are at distance 0 however many there are, and an offset that all features share rounds
nothing away. Where nearly all images are alike, bounds rule nothing out, and a product in float64
names the pairs that are computed.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from t2i_hpc.common.errors import EvaluationError
from t2i_hpc.evaluation.screening import Pairs, Screen, blocks, screens_of
from t2i_hpc.runs.partial_statistics import Features, in_memory

_SAMPLE = 2048  # images of each set that the center is the mean of
_SOME = 4  # one in so many points is asked for a first neighbors
_NARROW = 2048  # open pairs a point with which bounds save nothing
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
        screen: their short codes.
    """

    rows: Tensor
    screen: Screen

    @cached_property
    def squares(self) -> Tensor:
        """Squared lengths of `rows`, a little less than rounding makes them, float32 (N,)."""
        squares = [self.rows[own].square().sum(1) for own in blocks(len(self.rows))]
        return (1 - self.slack) * torch.cat(squares)

    @property
    def slack(self) -> float:
        """Relative error of squares and products, at most."""
        return 1e-5 + self.rows.shape[1] * 2.0**-24


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
        sets = {"generated": generated, "real": real}
        for name, features in sets.items():
            check_neighbors(neighbors, len(features), name)
        both = [torch.from_numpy(in_memory(each)).to(device) for each in sets.values()]
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
    """Return sets around the center of all of them, with one kind of screen.

    Args:
        sets: features, float32 (N, D) each; moved to the center in place, for they are large.
    """
    some = torch.cat([rows[:: -(-len(rows) // _SAMPLE)] for rows in sets])
    center = some.mean(0, dtype=torch.float64).float()  # near the middle is near enough
    centered = [rows.sub_(center) for rows in sets]
    return [Points(*both) for both in zip(centered, screens_of(centered), strict=True)]


def squared_radii(points: Points, k: int) -> Tensor:
    """Return the squared distance of each point to its k-th nearest other one, float64 (N,).

    Args:
        points: N points.
        k: less than N.
    """
    count, near = len(points.rows), _within(points, k)
    found: list[tuple[Tensor, ...]] = []
    for own in blocks(count):
        later = slice(own.start, None)  # each pair once: what i is to j, j is to i
        i, j = points.screen.open_pairs(
            own, points.screen, later, rows=near[own], columns=near[later]
        )
        once = j > i
        i, j = i[once], j[once]
        if bounds_fail(len(i), own.stop - own.start):
            return _radii_by_products(points, k)
        lower, upper = pair_bounds(points, own, points, later, (i, j))
        i, j = i + own.start, j + own.start
        left = lower <= torch.maximum(near[i], near[j])
        found.append((i[left], j[left], lower[left], upper[left]))
    i, j, lower, upper = map(torch.cat, zip(*found, strict=True))
    least, most = (
        _kth_of_each(torch.cat([i, j]), torch.cat([bound, bound]), k, count)
        for bound in (lower, upper)
    )
    # Only a distance that may be the k-th of one of its two points is computed.
    decides = torch.zeros_like(i, dtype=torch.bool)
    for point in (i, j):
        decides |= (lower <= most[point]) & (upper >= least[point])
    apart = lower
    apart[decides] = distances(points.rows, i[decides], points.rows, j[decides])
    return _kth_of_each(torch.cat([i, j]), torch.cat([apart, apart]), k, count)


def pair_bounds(points: Points, own: slice, others: Points, which: slice, pairs: Pairs) -> Pairs:
    """Return bounds of the squared distances of pairs, lower and upper, float64 (p,) each.

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
    lengths = points.squares[own][i].double() + others.squares[which][j]
    lower = lengths + products
    return lower, lower + 2.1 * points.slack * lengths


def _within(points: Points, k: int) -> Tensor:
    """Return squared distances within which each point has k others, float64 (N,)."""
    count = len(points.rows)
    step = _SOME if count > 2 * k * _SOME else 1
    wanted = min(2 * k + 2, len(range(0, count, step)) - 1)
    limits = []
    for own in blocks(count):
        near = points.screen.nearest(own, points.screen, step, wanted)
        itself = torch.arange(len(near), device=near.device)
        pairs = itself.repeat_interleave(wanted), near.flatten()
        _, upper = pair_bounds(points, own, points, slice(None), pairs)
        limits.append(upper.reshape(near.shape).kthvalue(k).values)
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
        apart = distances(points.rows, itself[:, None], points.rows, near)
        radii.append(apart.kthvalue(k).values)
    return torch.cat(radii)


def products(points: Points, own: slice, others: Points) -> Tensor:
    """Return squared distances to all others as products give them, float64 (n, M)."""
    left = points.rows[own].double()
    columns = []
    for rows in others.rows.split(_COLUMNS):
        right = rows.double()
        columns.append(right.square().sum(1) - 2 * left @ right.T)
    return torch.cat(columns, 1) + left.square().sum(1, keepdim=True)


def distances(rows: Tensor, first: Tensor, others: Tensor, second: Tensor) -> Tensor:
    """Return the squared distances of pairs of rows (N, D) and (M, D), in `second`'s shape.

    They are float64, of pairs of numbers `first` and `second`.
    """
    at_once = _PAIR_VALUES // rows.shape[1] + 1
    pairs = zip(
        first.expand_as(second).reshape(-1).split(at_once),
        second.reshape(-1).split(at_once),
        strict=True,
    )
    found = []
    for i, j in pairs:
        apart = rows.index_select(0, i).sub_(others.index_select(0, j))
        found.append(apart.square_().sum(1, dtype=torch.float64))
    return torch.cat(found).reshape(second.shape)


def bounds_fail(open_pairs: int, points: int) -> bool:
    """Whether bounds left so many pairs of some points open that products are cheaper."""
    return open_pairs > _NARROW * points
