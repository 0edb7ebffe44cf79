"""Fréchet distance between Gaussians with the moments of two sets of features.

    d² = |μ₁ − μ₂|² + tr Σ₁ + tr Σ₂ − 2 tr (Σ₁ Σ₂)^½          (Heusel et al., NeurIPS 2017)

With symmetric factors Σᵢ = Lᵢ Lᵢᵀ the last trace is the nuclear norm of L₁ᵀ L₂. Its singular
values come without the square root of small, noisy eigenvalues of a product, so the distance
also holds where there are fewer images than features. The rank of a covariance is at most
N − 1: eigenvalues beyond it are rounding noise and are left out.
"""

from __future__ import annotations

import torch
from torch import Tensor

from t2i_hpc.common.errors import EvaluationError
from t2i_hpc.metrics.moments import Moments


def frechet_distance(first: Moments, second: Moments) -> float:
    """Return d², in squared units of the features, never negative; symmetric in its arguments.

    Raises:
        EvaluationError: fewer than two images on a side, or features that are not finite.
    """
    first_factor, second_factor = _factor(first), _factor(second)
    trace = torch.linalg.svdvals(first_factor.T @ second_factor).sum()
    means = (first.mean() - second.mean()).square().sum()
    squares = first_factor.square().sum() + second_factor.square().sum()
    return max(0.0, float(means + squares - 2 * trace))


def _factor(moments: Moments) -> Tensor:
    """Return L, float64 (D, rank), with L Lᵀ = Σ."""
    covariance = moments.covariance()
    if not torch.isfinite(covariance).all():
        raise EvaluationError(
            "the features of some images are not finite: the generator or the weights of the "
            "detector are broken"
        )
    values, vectors = torch.linalg.eigh(covariance)
    noise = values[-1] * len(values) * torch.finfo(values.dtype).eps
    rank = min(int((values > noise).sum()), moments.count - 1)
    kept = len(values) - rank
    factor: Tensor = vectors[:, kept:] * values[kept:].sqrt()
    return factor
