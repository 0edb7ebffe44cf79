"""The Kullback-Leibler term of the conditioning augmentation."""

from __future__ import annotations

import torch
from torch.distributions import Normal, kl_divergence

from t2i_hpc.losses.adversarial import gaussian_divergence


def test_it_is_torchs_divergence_averaged_over_all_elements() -> None:
    mean, log_variance = torch.randn(5, 7), torch.randn(5, 7)
    gaussians = Normal(mean, (log_variance / 2).exp())
    expected = kl_divergence(gaussians, Normal(torch.zeros(5, 7), torch.ones(5, 7))).mean()
    assert torch.allclose(gaussian_divergence(mean, log_variance), expected, rtol=1e-5)


def test_the_standard_normal_has_none_and_half_precision_does_not_overflow() -> None:
    zero = torch.zeros(2, 3)
    assert float(gaussian_divergence(zero, zero)) == 0
    large = torch.full((2, 3), 12.0, dtype=torch.float16)
    assert bool(gaussian_divergence(zero.half(), large).isfinite())
