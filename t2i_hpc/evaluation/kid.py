"""Kernel distance (KID): the unbiased squared maximum mean discrepancy of random subsets.

    k(x, y) = (x·y / D + 1)³                     (Bińkowski et al., ICLR 2018)

Unlike the Fréchet distance it has no bias by N, so it is the one for CUB's few test images. The
subsets are drawn by the seed from the image numbers of all images, so they do not depend on
shards; the draws are torch-fidelity's.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from t2i_hpc.common.errors import EvaluationError
from t2i_hpc.runs.partial_statistics import Features, release

_CPU = torch.device("cpu")
_ROWS = 256  # of a matrix of kernels at once, so that it stays in a core's own cache
_SAMPLE = 1024  # images of each set that the center is the mean of


def kernel_distance(
    generated: Features,
    real: Features,
    *,
    subsets: int,
    size: int,
    seed: int,
    device: torch.device = _CPU,
) -> tuple[float, float]:
    """Return mean and standard deviation (divisor `subsets`) over the subsets.

    Args:
        generated: features by image number, float (N, D); may be memory-mapped.
        real: of the real images, float (M, D).
        subsets: number of pairs of subsets.
        size: images of each, at most N and M.
        seed: of the draws, 0 ≤ seed < 2³².
        device: where kernels are computed.

    Raises:
        EvaluationError: a set has fewer images than a subset.
    """
    both = generated, real
    for name, rows in zip(("generated", "real"), both, strict=True):
        check_subset_size(size, len(rows), name)
    center = _center(both).to(device)
    draws = np.random.RandomState(seed)
    values = []
    for _ in range(subsets):
        chosen = [rows[draws.choice(len(rows), size, replace=False)] for rows in both]
        pair = [_Subset.of(torch.from_numpy(np.asarray(c)).to(device), center) for c in chosen]
        values.append(_squared_discrepancy(*pair))
    for rows in both:
        release(rows)
    return float(np.mean(values)), float(np.std(values))


def check_subset_size(size: int, images: int, name: str) -> None:
    """Refuse subsets that an image set has too few images for.

    Raises:
        EvaluationError: says what to set.
    """
    if images < size:
        raise EvaluationError(
            f"evaluation.kid_subset_size={size} is more than the {images} {name} images: "
            "take a smaller one (the score is not comparable with that of another size)"
        )


@dataclass(frozen=True)
class _Subset:
    """Features as differences from a common center c, so that a product in float32 is enough.

    x·y = (x - c)·(y - c) + (x - c)·c + (y - c)·c + c·c: what is large is a sum of two vectors in
    float64; the product of the small differences costs half in float32.

    Attributes:
        rows: (x - c) / √D, float32 (m, D).
        shifts: (x·c - c·c / 2) / D + 1/2, float64 (m,); two of them and a product of rows make
            x·y / D + 1.
    """

    rows: Tensor
    shifts: Tensor

    @classmethod
    def of(cls, features: Tensor, center: Tensor) -> _Subset:
        exact, width = center.double(), features.shape[1]
        along = torch.cat([rows.double() @ exact for rows in features.split(_ROWS)])
        shifts = (along - exact.dot(exact) / 2) / width + 0.5
        return cls((features.float() - center).mul_(width**-0.5), shifts)

    def __getitem__(self, which: slice) -> _Subset:
        return _Subset(self.rows[which], self.shifts[which])

    def blocks(self) -> Iterator[tuple[_Subset, _Subset]]:
        """Yield a few rows and all that come after them."""
        for start in range(0, len(self.rows), _ROWS):
            yield self[start : start + _ROWS], self[start + _ROWS :]


def _squared_discrepancy(first: _Subset, second: _Subset) -> float:
    """Return the unbiased estimate of MMD² for two sets of the same size m."""
    size = len(first.rows)
    within = _kernel_sum_within(first) + _kernel_sum_within(second)
    between = sum(_cubes(_base(rows, second)) for rows, _ in first.blocks())
    return float(within / (size * (size - 1)) - 2 * between / size**2)


def _kernel_sum_within(subset: _Subset) -> Tensor:
    """Return the sum of the kernel over all pairs of different rows, nearly all computed once."""
    total = subset.shifts.new_zeros(())
    for rows, later in subset.blocks():
        itself = _base(rows, rows)
        total += _cubes(itself) - _cubes(itself.diagonal()) + 2 * _cubes(_base(rows, later))
    return total


def _base(first: _Subset, second: _Subset) -> Tensor:
    """Return x·y / D + 1 of all pairs, float64 (m, n)."""
    values = (first.rows @ second.rows.T).double()
    return values.add_(first.shifts[:, None]).add_(second.shifts)


def _cubes(values: Tensor) -> Tensor:
    """Return the sum of the cubes."""
    flat = values.reshape(-1)
    return flat.square().dot(flat)


def _center(both: Sequence[Features]) -> Tensor:
    """Return a point amid the features, float32 (D,), from some of them."""
    some = [rows[:: -(-len(rows) // _SAMPLE)].astype(np.float64) for rows in both]
    return torch.from_numpy(np.concatenate(some).mean(axis=0)).float()
