"""CMMD: the squared maximum mean discrepancy of CLIP's image codes under a Gaussian kernel.

    CMMD = 1000 (mean k(x, x′) + mean k(y, y′) − 2 mean k(x, y)),  k(a, b) = exp(−|a − b|² / 2σ²)

with σ = 10, over all pairs, an image with itself included (Jayasumana et al., CVPR 2024). Codes
have length 1, so the kernel is nearly flat, and its means agree in their first digits: what is
summed is k − 1.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from t2i_hpc.runs.partial_statistics import Features

SIGMA, SCALE = 10.0, 1000.0
_ROWS = 512  # of a matrix of kernels, so that 30,000 columns take 120 MB


def code_discrepancy(generated: Features, real: Features, *, device: torch.device) -> float:
    """Return the discrepancy, 0 or more.

    Args:
        generated: codes by image number, float (N, D), of any length.
        real: of the real images, float (M, D).
        device: of the kernels.
    """
    both = [
        torch.from_numpy(np.array(rows, dtype=np.float32)).to(device) for rows in (generated, real)
    ]
    first, second = (rows / rows.norm(dim=1, keepdim=True).clamp_min(1e-12) for rows in both)
    # Around a common center products are small: float32 is exact enough for them, at half the time.
    center = (first.mean(0) + second.mean(0)) / 2
    first, second = first - center, second - center
    within = _mean_kernel(first, first) + _mean_kernel(second, second)
    return SCALE * (within - 2 * _mean_kernel(first, second))


def _mean_kernel(first: Tensor, second: Tensor) -> float:
    """Return the mean of k − 1 over all pairs."""
    squares = second.double().square().sum(1)
    total = 0.0
    for rows in first.split(_ROWS):
        apart = (rows @ second.T).double().mul_(-2).add_(squares)
        apart += rows.double().square().sum(1, keepdim=True)
        total += float(apart.div_(-2 * SIGMA**2).expm1_().sum())
    return total / (len(first) * len(second))
