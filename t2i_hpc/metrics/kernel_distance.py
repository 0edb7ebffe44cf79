"""Kernel distance (KID): the unbiased squared maximum mean discrepancy of random subsets.

    k(x, y) = (x·y / D + 1)³                     (Bińkowski et al., ICLR 2018)

Unlike the Fréchet distance it has no bias by N, so it is the one for CUB's few test images. The
subsets are drawn by the seed from the image numbers of all images of a side, so they do not
depend on parts; the draws are torch-fidelity's.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from t2i_hpc.common.errors import EvaluationError

Rows = npt.NDArray[Any]


def kernel_distance(
    generated: Rows, real: Rows, *, subsets: int, size: int, seed: int
) -> tuple[float, float]:
    """Return mean and standard deviation (divisor `subsets`) over the subsets.

    Args:
        generated: features by image number, float (N, D); may be memory-mapped.
        real: the other side's, float (M, D).
        subsets: number of pairs of subsets.
        size: images of each, at most N and M.
        seed: of the draws, 0 ≤ seed < 2³².

    Raises:
        EvaluationError: a side has fewer images than a subset.
    """
    for side, rows in (("generated", generated), ("real", real)):
        if len(rows) < size:
            raise EvaluationError(
                f"evaluation.kid_subset_size={size} is more than the {len(rows)} {side} images: "
                "take a smaller one (the score is not comparable with that of another size)"
            )
    draws = np.random.RandomState(seed)
    values = []
    for _ in range(subsets):
        chosen = [rows[draws.choice(len(rows), size, replace=False)] for rows in (generated, real)]
        values.append(_squared_discrepancy(*(torch.from_numpy(c).double() for c in chosen)))
    return float(np.mean(values)), float(np.std(values))


def _squared_discrepancy(first: Tensor, second: Tensor) -> float:
    """Return the unbiased estimate of MMD² for two sets of the same size, float64 (m, D)."""
    size = len(first)
    within = sum(_kernel_sum_without_diagonal(rows) for rows in (first, second))
    between = _kernel(first, second).sum()
    return float(within / (size * (size - 1)) - 2 * between / size**2)


def _kernel_sum_without_diagonal(rows: Tensor) -> Tensor:
    values = _kernel(rows, rows)
    return values.sum() - values.diagonal().sum()


def _kernel(first: Tensor, second: Tensor) -> Tensor:
    return (first @ second.T / first.shape[1] + 1) ** 3
