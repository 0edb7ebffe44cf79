"""Which pairs of images may be near: most are ruled out by one short matrix product.

Distances of two images' leading principal coordinates, with the length of what is left of each as
one coordinate more, are never longer than those of the features: they are lower bounds. A CPU that
multiplies bytes compares such coordinates rounded to whole numbers. Their product is exact, and how
far rounding moved each image is known, so a pair that it rules out is ruled out for good. Bytes are
four times as quick as float32, which buys more coordinates.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

Pairs = tuple[Tensor, Tensor]

AT_ONCE = 512  # rows of a matrix of products, so that 30,000 columns take 60 MB
_LEADING, _LEADING_BYTES = 512, 1024  # principal coordinates in float32, in bytes
_SAMPLE = 2048  # images of a set that the principal axes are computed from
_LARGEST = 127  # of a byte
_WIDTH = 64  # codes are filled up to a multiple of so many bytes, as kernels like them
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
        found = self.products(own, others, which)
        near: Tensor | None = None
        if columns is not None:
            reach, more = self._reach(columns, theirs, errors)
            found.sub_(self._not_above(beyond - reach))
            near = found >= self._not_above(lengths - more)[:, None]
            beyond = reach  # which is taken back
        if rows is not None:
            reach, more = self._reach(rows, errors, theirs)
            beyond = beyond - more
            found.sub_(self._not_above(beyond if closed is None else beyond + 4 * _FAR * closed))
            wanted = found >= self._not_above(lengths - reach)[:, None]
            near = wanted if near is None else near.logical_or_(wanted)
        if near is None:
            raise ValueError("no distance was given")
        return positions(near)

    def nearest(self, own: slice, others: Screen, step: int, count: int) -> Tensor:
        """Return numbers of others that are about the nearest ones, ascending, int64 (n, count).

        Args:
            own: points, none of which is near itself.
            others: of which every `step`-th is looked at.
            step: 1 for all.
            count: how many are wanted.
        """
        some = slice(None, None, step)
        found = self.products(own, others, some).sub_(self._not_above(others.halves[some]))
        if others is self:
            itself = torch.arange(len(self.codes), device=found.device)[own]
            among = itself % step == 0
            found[among, itself[among] // step] = -int(_FAR)
        return step * found.topk(count).indices.sort(1).values

    def products(self, own: slice, others: Screen, which: slice) -> Tensor:
        """Return the products of codes, float32 or int32 (n, m)."""
        left, right = self.codes[own], others.codes[which]
        if left.dtype != torch.int8:
            return left @ right.T
        result: Tensor = torch._int_mm(left, right.T)
        return result

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
    by_bytes = multiplies_bytes(sets[0].device)
    leading, width = _LEADING_BYTES if by_bytes else _LEADING, sets[0].shape[1]
    some = torch.cat([rows[:: -(-len(rows) // _SAMPLE)] for rows in sets])
    shorter: Callable[[Tensor], Tensor] = _as_they_are
    if leading < width:
        shorter = _Shorter(_axes(some, leading), some[:AT_ONCE])
    slack = 1e-5 + width * 2.0**-24  # of products, and of the axes
    if not by_bytes:
        return [_in_floats(rows, shorter, slack) for rows in sets]
    largest = torch.cat([shorter(some[own]).abs().amax(1) for own in blocks(len(some))])
    usual = float(largest.kthvalue(max(1, int(_USUAL * len(largest)))).values)
    step = max(usual / _LARGEST, 1e-30)
    return [_in_bytes(rows, shorter, step, slack) for rows in sets]


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


def _as_they_are(rows: Tensor) -> Tensor:
    return rows


def _in_floats(rows: Tensor, shorter: Callable[[Tensor], Tensor], slack: float) -> Screen:
    short = torch.cat([shorter(rows[own]) for own in blocks(len(rows))])
    squares = torch.cat([short[own].square().sum(1) for own in blocks(len(short))])
    none = torch.zeros(len(short), dtype=torch.float64, device=short.device)
    return Screen(short, 1.0, squares.double() * (1 - slack) / 2, none)


def _in_bytes(
    rows: Tensor, shorter: Callable[[Tensor], Tensor], step: float, slack: float
) -> Screen:
    """Return coordinates rounded to whole numbers of steps."""
    width = shorter(rows[:1]).shape[1]
    # Zeros move no product; of codes of one byte torch 2.14 gives wrong ones.
    codes = torch.zeros(len(rows), -(-width // _WIDTH) * _WIDTH, dtype=torch.int8)
    halves, errors = torch.empty(2, len(rows), dtype=torch.float64)
    for own in blocks(len(rows)):
        short = shorter(rows[own])
        whole = (short / step).round_().clamp_(-_LARGEST, _LARGEST)
        codes[own, :width] = whole.to(torch.int8)
        halves[own] = whole.square().sum(1, dtype=torch.float64) / 2
        apart = short.sub(whole, alpha=step).norm(dim=1).double()
        errors[own] = apart * (1 + slack) + slack * short.norm(dim=1)
    return Screen(codes, step, halves, errors)
