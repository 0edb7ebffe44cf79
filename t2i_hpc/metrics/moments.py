"""Count, sum and sum of outer products of features: all that a Fréchet distance needs.

Sums of parts add up to the sums of the whole, so images can be split over any number of
processes and machines; mean and covariance are formed once, from the sums of all. Everything
is float64: float32 sums already move FID in the sixth digit at 30,000 images.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from t2i_hpc.common.errors import EvaluationError
from t2i_hpc.metrics.sums import Arrays, Seen

NAMES = ("count", "total", "outer")


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

    def add(self, seen: Seen) -> None:
        """Add the features of a batch."""
        self.add_rows(seen.features)

    def add_rows(self, features: Tensor) -> None:
        """Add feature vectors, float (B, D)."""
        rows = features.detach().to(self.total.device, torch.float64)
        self.count += len(rows)
        self.total += rows.sum(dim=0)
        self.outer.addmm_(rows.T, rows)

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
