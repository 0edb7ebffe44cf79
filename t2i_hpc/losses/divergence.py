"""Divergence of the conditioning augmentation's Gaussian from the standard normal."""

from __future__ import annotations

import torch
from torch import Tensor


def gaussian_divergence(mean: Tensor, log_variance: Tensor) -> Tensor:
    """Return KL(N(μ, σ²) ‖ N(0, 1)) as a mean over batch and dimensions.

    The released AttnGAN averages over all elements instead of summing over dimensions
    (its weight of 1 belongs to that form); computed in float32 or wider.

    Args:
        mean: μ, (B, C).
        log_variance: log σ², (B, C).
    """
    wide = torch.promote_types(mean.dtype, torch.float32)
    mean, log_variance = mean.to(wide), log_variance.to(wide)
    return -0.5 * (1 + log_variance - mean.square() - log_variance.exp()).mean()
