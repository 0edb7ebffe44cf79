"""FID: Fréchet distance between Gaussians with the moments of two sets of features.

    d² = |μ₁ − μ₂|² + tr Σ₁ + tr Σ₂ − 2 tr (Σ₁ Σ₂)^½          (Heusel et al., NeurIPS 2017)

Count, sum and sum of outer products are all that it needs. They add up over shards, so images
can be split over any number of processes and machines; mean and covariance are formed once, from
the sums of all. Everything is float64: float32 sums already move FID in the sixth digit at
30,000 images.

With factors Σᵢ = Lᵢ Lᵢᵀ, whatever they are, the last trace is the nuclear norm of L₁ᵀ L₂. Its
singular values come without the square root of small, noisy eigenvalues of a product, so the
distance also holds where there are fewer images than features.

The factor is Cholesky's where the covariance is well away from singular, else made of a symmetric
eigendecomposition: the rank of a covariance is at most N − 1, and eigenvalues beyond it are
rounding noise and are left out. NumPy's LAPACK is the quicker one on a CPU.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from t2i_hpc.common.errors import EvaluationError
from t2i_hpc.evaluation.collectors import FeatureBatch
from t2i_hpc.runs.partial_statistics import Arrays

NAMES = ("count", "total", "outer")
Matrix = npt.NDArray[np.floating[Any]]
# Smallest pivot, over the largest variance, of a covariance that counts as regular.
_REGULAR = 1e-9


@dataclass(frozen=True)
class Gaussian:
    """Mean and covariance of a set of feature vectors.

    Attributes:
        mean: float64 (D,).
        covariance: float64 (D, D), with the divisor N − 1.
        count: number of vectors N; None where a file does not say it.
    """

    mean: Tensor
    covariance: Tensor
    count: int | None = None


@dataclass
class Moments:
    """Raw moments of a set of feature vectors.

    Attributes:
        count: number of vectors N.
        total: float64 (D,), Σ x.
        outer: float64 (D, D), Σ x xᵀ.
    """

    count: int
    total: Tensor
    outer: Tensor

    @classmethod
    def empty(cls, width: int, device: torch.device | str = "cpu") -> Moments:
        """Return the moments of no vectors of length `width`."""
        zeros = torch.zeros(width, dtype=torch.float64, device=device)
        return cls(0, zeros, torch.outer(zeros, zeros))

    def add(self, batch: FeatureBatch) -> None:
        """Add the features of a batch."""
        self.add_rows(batch.features)

    def add_rows(self, features: Tensor) -> None:
        """Add feature vectors, float (B, D)."""
        rows = features.detach().to(self.total.device, torch.float64)
        self.count += len(rows)
        self.total += rows.sum(dim=0)
        self.outer.addmm_(rows.T, rows)  # Σ x xᵀ: the covariance, but for mean and N

    def mean(self) -> Tensor:
        """Return the mean, float64 (D,).

        Raises:
            EvaluationError: there are no vectors.
        """
        if self.count < 1:
            raise EvaluationError("no images were evaluated: there is no mean of nothing")
        return self.total / self.count

    def covariance(self) -> Tensor:
        """Return the unbiased covariance (divisor N − 1), float64 (D, D).

        Raises:
            EvaluationError: there are fewer than two vectors.
        """
        if self.count < 2:
            raise EvaluationError(
                f"{self.count} image(s) have no covariance: evaluate at least 2 images"
            )
        mean = self.mean()
        return (self.outer - self.count * torch.outer(mean, mean)) / (self.count - 1)

    def gaussian(self) -> Gaussian:
        """Return mean and covariance, float64.

        Raises:
            EvaluationError: there are fewer than two vectors.
        """
        return Gaussian(self.mean(), self.covariance(), self.count)

    def arrays(self) -> Arrays:
        """Return the moments as arrays that add up: count int64 (), total and outer float64."""
        return {
            "count": np.array(self.count, dtype=np.int64),
            "total": self.total.cpu().numpy(),
            "outer": self.outer.cpu().numpy(),
        }

    @classmethod
    def from_arrays(cls, arrays: Arrays) -> Moments:
        """Return the moments that :meth:`arrays` gave away."""
        total, outer = (torch.from_numpy(arrays[name]) for name in ("total", "outer"))
        return cls(int(arrays["count"]), total, outer)


def frechet_distance(first: Moments | Gaussian, second: Moments | Gaussian) -> float:
    """Return d², in squared units of the features, never negative; symmetric in its arguments.

    Raises:
        EvaluationError: fewer than two images in a set, or non-finite features.
    """
    one, other = (g if isinstance(g, Gaussian) else g.gaussian() for g in (first, second))
    first_factor, second_factor = _factor(one), _factor(other)
    trace = np.linalg.svd(first_factor.T @ second_factor, compute_uv=False).sum()
    means = (one.mean.cpu() - other.mean.cpu()).square().sum()
    squares = np.square(first_factor).sum() + np.square(second_factor).sum()
    return max(0.0, float(means) + float(squares - 2 * trace))


def _factor(gaussian: Gaussian) -> Matrix:
    """Return L, float64 (D, rank), with L Lᵀ = Σ."""
    covariance: Matrix = gaussian.covariance.cpu().numpy()
    count = len(covariance) + 1 if gaussian.count is None else gaussian.count
    if not np.isfinite(covariance).all():
        raise EvaluationError(
            "the features of some images are NaN or Inf: the weights of the generator or of the "
            "detector are broken"
        )
    factor = _cholesky(covariance) if count > len(covariance) else None
    return _eigenvectors(covariance, count - 1) if factor is None else factor


def _cholesky(covariance: Matrix) -> Matrix | None:
    """Return the lower factor, None where the covariance is singular or nearly so."""
    try:
        factor: Matrix = np.linalg.cholesky(covariance)
    except np.linalg.LinAlgError:
        return None
    regular = np.square(factor.diagonal()).min() > _REGULAR * covariance.diagonal().max()
    return factor if regular else None


def _eigenvectors(covariance: Matrix, most: int) -> Matrix:
    """Return the eigenvectors that are no noise, at most `most`, by the roots of their values."""
    values, vectors = np.linalg.eigh(covariance)
    noise = values[-1] * len(values) * np.finfo(values.dtype).eps
    kept = len(values) - min(int((values > noise).sum()), most)
    factor: Matrix = vectors[:, kept:] * np.sqrt(values[kept:])
    return factor
