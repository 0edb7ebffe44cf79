"""Which pairs of images may be near: most are ruled out by one short matrix product.

Distances of two images' leading principal coordinates, with the length of what is left of each as
one coordinate more, are never longer than those of the features: they are lower bounds. A CPU that
multiplies bytes compares all coordinates, rounded to whole numbers. Their product is exact, and how
far rounding moved each image is known, so a pair that it rules out is ruled out for good. Bytes are
four times as quick as float32 or more, which pays for all coordinates: rounding costs less than
leaving any out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

Pairs = tuple[Tensor, Tensor]

AT_ONCE = 512  # rows of a matrix of products
_COLUMNS = 2048  # of it at once on a CPU, so that what follows finds them in a core's own cache
_LEADING = 512  # principal coordinates in float32
_SAMPLE = 2048  # images of a set that the principal axes are computed from
_LARGEST = 127  # of a byte
_WIDTH = 64  # coordinates that are turned together; kernels like multiples of so many bytes
_USUAL = 0.98  # share of images none of whose coordinates are cut off
_FAR = 2.0**27  # half a squared distance of codes that no pair of codes reaches


@dataclass(frozen=True)
class Screen:
    """Short codes of the images of a set.

    Attributes:
        codes: float32 or int8 (N, C).
        step: distance of codes that differ by one.
        halves: half their squared lengths, not longer than they are, float64 (N,).
        errors: how far an image's coordinates are from its code, at most, float64 (N,).
    """

    codes: Tensor
    step: float
    halves: Tensor
    errors: Tensor

    def open_pairs(
        self,
        own: slice,
        others: Screen,
        which: slice,
        *,
        rows: Tensor | None = None,
        columns: Tensor | None = None,
        closed: Tensor | None = None,
    ) -> Pairs:
        """Return pairs, among them all within a distance: i ascending, and j, int64 (p,) each.

        Args:
            own: points; i counts from the first of them.
            others, which: points; j counts from the first of them.
            rows: squared distance within which pairs of a point are wanted, float64 (n,).
            columns: the same of an other point, (m,).
            closed: other points of which `rows` wants none, bool (m,).
        """
        lengths, beyond = self.halves[own], others.halves[which]
        errors, theirs = self.errors[own], others.errors[which]
        tests: list[Pairs] = []  # of what a product is not below: a term of i and one of j
        if columns is not None:
            reach, more = self._reach(columns, theirs, errors)
            tests.append((lengths - more, beyond - reach))
        if rows is not None:
            reach, more = self._reach(rows, errors, theirs)
            far = 0.0 if closed is None else 4 * _FAR * closed
            tests.append((lengths - reach, beyond - more + far))
        if not tests:
            raise ValueError("no distance was given")
        found = []
        for start, products in self._products(own, others, which):
            i, j = positions(self._passing(products, start, tests))
            found.append((i, j + start))
        return _by_rows(found)

    def nearest(self, own: slice, others: Screen, step: int, count: int) -> Tensor:
        """Return numbers of others that are about the nearest ones, ascending, int64 (n, count).

        Args:
            own: points, none of which is near itself.
            others: of which every `step`-th is looked at.
            step: 1 for all.
            count: how many are wanted.
        """
        some = slice(None, None, step)
        lengths = self._not_above(others.halves[some])
        itself = (
            torch.arange(len(self.codes), device=lengths.device)[own] if others is self else None
        )
        best: list[Pairs] = []
        for start, products in self._products(own, others, some):
            stop = start + products.shape[1]
            products.sub_(lengths[start:stop])
            if itself is not None:
                among = (itself % step == 0) & (itself >= step * start) & (itself < step * stop)
                products[among, itself[among] // step - start] = -int(_FAR)
            values, places = products.topk(min(count, stop - start))
            best.append((values, places + start))
        values, places = (torch.cat(each, 1) for each in zip(*best, strict=True))
        return step * places.gather(1, values.topk(count).indices).sort(1).values

    def _products(self, own: slice, others: Screen, which: slice) -> Iterator[tuple[int, Tensor]]:
        """Yield the products of codes by columns: the first one, and float32 or int32 (n, w).

        Each takes the place of the one before: to ask for memory costs more than a product.
        """
        left, right = self.codes[own], others.codes[which]
        by_bytes, (rows, count) = left.dtype == torch.int8, (len(left), len(right))
        wide = _COLUMNS if left.device.type == "cpu" else max(1, count)
        kind = torch.int32 if by_bytes else left.dtype
        room = left.new_empty(rows * min(wide, count), dtype=kind)
        for start in range(0, count, wide):
            part = right[start : start + wide].contiguous()
            result = room[: rows * len(part)].view(rows, len(part))
            yield start, (torch._int_mm if by_bytes else torch.mm)(left, part.T, out=result)

    def _passing(self, products: Tensor, start: int, tests: Sequence[Pairs]) -> Tensor:
        """Return which products pass a test, bool (n, w); they are overwritten.

        Args:
            products: of the columns from `start` on, (n, w).
            tests: what a product is not below: a term of i (n,) and one of j (m,).
        """
        passing, before = None, None
        for of_i, of_j in tests:
            own = of_j[start : start + products.shape[1]]
            products.sub_(self._not_above(own if before is None else own - before))
            passes = products >= self._not_above(of_i)[:, None]
            passing, before = passes if passing is None else passing.logical_or_(passes), own
        assert passing is not None
        return passing

    def _reach(self, squared: Tensor, errors: Tensor, others: Tensor) -> Pairs:
        """Return half the squared distance of codes that a pair within a distance may have.

        With d a distance and e the error of its point, the codes of another point with the error o
        are at most d + e + o away. Of the square, what depends on both points is
        (d + e) o ≤ (d + e) min o + max (d + e) (o − min o): a term of each.

        Args:
            squared, errors: d² and e, (n,).
            others: o, (m,).

        Returns:
            the terms, float64 (n,) and (m,).
        """
        far, least = squared.double().sqrt() + errors, others.min()
        own = far.square() / 2 + far * least
        theirs = far.max() * (others - least) + others.square() / 2
        unit = (1 + 1e-9) / self.step**2
        return own.mul_(unit).clamp_max_(_FAR), theirs.mul_(unit).clamp_max_(_FAR)

    def _not_above(self, values: Tensor) -> Tensor:
        """Return values as what is compared with products, rounded to what leaves more open."""
        return values.floor().int() if self.codes.dtype == torch.int8 else values.float()


def screens_of(sets: list[Tensor]) -> list[Screen]:
    """Return the screens of sets of features around a center, float32 (N, D) each."""
    width, by_bytes = sets[0].shape[1], multiplies_bytes(sets[0].device)
    some = torch.cat([rows[:: -(-len(rows) // _SAMPLE)] for rows in sets])
    slack = 1e-5 + width * 2.0**-24  # of products, and of the axes
    if not by_bytes:
        shorter: Callable[[Tensor], Tensor] = _as_they_are
        if width > _LEADING:
            shorter = _Shorter(_axes(some, _LEADING), some[:AT_ONCE])
        return [_in_floats(rows, shorter, slack) for rows in sets]
    turn = _Turn(width)
    most = min(_LARGEST, int(math.sqrt(_FAR / (2 * turn.width))))
    largest = torch.cat([turn(some[own]).abs().amax(1) for own in blocks(len(some))])
    usual = float(largest.kthvalue(max(1, int(_USUAL * len(largest)))).values)
    step = max(usual / most, 1e-30)
    return [_in_bytes(rows, turn, step, most, slack) for rows in sets]


def multiplies_bytes(device: torch.device) -> bool:
    """Whether products of bytes are quick on a device."""
    asked = getattr(torch.cpu, "_is_vnni_supported", None)  # of torch 2.4 and later
    return device.type == "cpu" and asked is not None and bool(asked())


def positions(mask: Tensor) -> Pairs:
    """Return where a matrix is true, by rows: int64 (p,) each."""
    rows, columns = mask.shape
    if mask.device.type != "cpu" or columns % 8:
        i, j = mask.nonzero(as_tuple=True)
        return i, j
    # Eight at once are one number, and nearly all of them are 0.
    i, group = mask.view(torch.int64).nonzero(as_tuple=True)
    which, place = mask.view(rows, columns // 8, 8)[i, group].nonzero(as_tuple=True)
    return i[which], group[which] * 8 + place


def blocks(count: int) -> Iterator[slice]:
    """Yield slices of so many points that matrices of products stay small."""
    for start in range(0, count, AT_ONCE):
        yield slice(start, min(start + AT_ONCE, count))


def _axes(some: Tensor, count: int) -> Tensor:
    """Return axes near the leading principal ones, orthonormal, float32 (D, C).

    Any orthonormal axes give lower bounds: how near they are to the principal ones decides how many
    pairs are left open, so a randomized range will do (Halko et al., 2011). They are turned at
    random, so that coordinates are of one size, as bytes like it.
    """
    draws = torch.Generator().manual_seed(0)
    drawn = torch.randn(some.shape[1], count, generator=draws).to(some.device)
    turn = torch.linalg.qr(torch.randn(count, count, generator=draws)).Q.to(some.device)
    found = torch.linalg.qr(some.T @ (some @ drawn)).Q
    axes: Tensor = torch.linalg.qr(found @ turn).Q
    return axes


class _Shorter:
    """Coordinates along axes, and the length of what is left, (n, C + 1) of features (n, D).

    Args:
        axes: orthonormal, (D, C).
        some: features, by which these lengths lie around 0, as the coordinates do.
    """

    def __init__(self, axes: Tensor, some: Tensor) -> None:
        self._axes, self._middle = axes, 0.0
        self._middle = float(self(some)[:, -1].mean())

    def __call__(self, rows: Tensor) -> Tensor:
        leading = rows @ self._axes
        rest = torch.addmm(rows, leading, self._axes.T, alpha=-1)
        return torch.cat([leading, rest.norm(dim=1, keepdim=True) - self._middle], 1)


class _Turn:
    """Turns features at random, so that their coordinates are of one size, as bytes like it.

    A large random rotation is dear; of one in two factors, each of few coordinates, every
    coordinate is still a sum of all features'. Distances stay.

    Args:
        features: D.
    """

    def __init__(self, features: int) -> None:
        self._groups = -(-features // _WIDTH)
        draws = torch.Generator().manual_seed(0)
        self._across, self._within = (
            torch.linalg.qr(torch.randn(size, size, generator=draws)).Q
            for size in (self._groups, _WIDTH)
        )

    @property
    def width(self) -> int:
        """Coordinates, D and zeros up to a multiple of 64."""
        return self._groups * _WIDTH

    def __call__(self, rows: Tensor) -> Tensor:
        """Return coordinates (n, C) of features (n, D)."""
        padded = F.pad(rows, (0, self.width - rows.shape[1]))
        groups = padded.reshape(-1, self._groups, _WIDTH) @ self._within
        across: Tensor = groups.transpose(1, 2) @ self._across
        return across.reshape(-1, self.width)


def _as_they_are(rows: Tensor) -> Tensor:
    return rows


def _in_floats(rows: Tensor, shorter: Callable[[Tensor], Tensor], slack: float) -> Screen:
    short = torch.cat([shorter(rows[own]) for own in blocks(len(rows))])
    squares = torch.cat([short[own].square().sum(1) for own in blocks(len(short))])
    none = torch.zeros(len(short), dtype=torch.float64, device=short.device)
    return Screen(short, 1.0, squares.double() * (1 - slack) / 2, none)


def _in_bytes(rows: Tensor, turn: _Turn, step: float, most: int, slack: float) -> Screen:
    """Return coordinates rounded to whole numbers of steps, `most` of them at the largest."""
    codes = torch.empty(len(rows), turn.width, dtype=torch.int8)
    halves, errors = torch.empty(2, len(rows), dtype=torch.float64)
    for own in blocks(len(rows)):
        turned = turn(rows[own])
        whole = (turned / step).round_().clamp_(-most, most)
        codes[own] = whole.to(torch.int8)
        halves[own] = whole.square().sum(1, dtype=torch.float64) / 2
        apart = turned.sub(whole, alpha=step).norm(dim=1).double()
        errors[own] = apart * (1 + slack) + slack * turned.norm(dim=1)
    return Screen(codes, step, halves, errors)


def _by_rows(found: Sequence[Pairs]) -> Pairs:
    """Return the pairs of several columns, by rows: int64 (p,) each."""
    i, j = (torch.cat(each) for each in zip(*found, strict=True))
    order = i.argsort(stable=True)
    return i[order], j[order]
