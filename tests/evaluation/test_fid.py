"""The distance against closed forms, against torch-fidelity, and where ranks are short."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric

from t2i_hpc.common.errors import EvaluationError
from t2i_hpc.evaluation.fid import Moments, frechet_distance


def _random(count: int, width: int, seed: int) -> torch.Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed)).double()


def _moments(features: torch.Tensor) -> Moments:
    moments = Moments.empty(features.shape[1])
    moments.add_rows(features)
    return moments


def _gaussian(mean: torch.Tensor, covariance: torch.Tensor, count: int = 1000) -> Moments:
    """Return moments whose mean and covariance are exactly those given."""
    outer = covariance * (count - 1) + count * torch.outer(mean, mean)
    return Moments(count, mean * count, outer)


def _oracle(first: torch.Tensor, second: torch.Tensor) -> float:
    statistics = [fid_features_to_statistics(features) for features in (first, second)]
    result: dict[str, float] = fid_statistics_to_metric(*statistics, verbose=False)
    return result["frechet_inception_distance"]


def test_one_dimensional_gaussians() -> None:
    first = _gaussian(torch.tensor([1.0]).double(), torch.tensor([[4.0]]).double())
    second = _gaussian(torch.tensor([4.0]).double(), torch.tensor([[25.0]]).double())
    assert frechet_distance(first, second) == pytest.approx(3**2 + (5 - 2) ** 2, rel=1e-12)


def test_commuting_covariances() -> None:
    rotation = torch.linalg.qr(_random(5, 5, 1)).Q
    first, second = torch.tensor([[1.0, 2, 3, 4, 5], [9.0, 7, 5, 3, 1]]).double()
    zero = torch.zeros(5).double()
    gaussians = [_gaussian(zero, rotation @ v.diag() @ rotation.T) for v in (first, second)]
    expected = (first.sqrt() - second.sqrt()).square().sum().item()
    assert frechet_distance(*gaussians) == pytest.approx(expected, rel=1e-10)


def test_two_dimensional_gaussians_that_do_not_commute() -> None:
    # tr (AB)^½ of 2 × 2 matrices is sqrt(tr AB + 2 sqrt(det A det B)).
    first = torch.tensor([[2.0, 1.0], [1.0, 3.0]]).double()
    second = torch.tensor([[5.0, -2.0], [-2.0, 1.0]]).double()
    cross = math.sqrt(
        torch.trace(first @ second).item()
        + 2 * math.sqrt(torch.det(first).item() * torch.det(second).item())
    )
    expected = 2 + 3 + 5 + 1 - 2 * cross
    zero = torch.zeros(2).double()
    gaussians = (_gaussian(zero, first), _gaussian(zero, second))
    assert frechet_distance(*gaussians) == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize(("count", "width"), [(500, 40), (41, 40), (20, 40), (2, 40)])
def test_identical_sets_have_distance_zero(count: int, width: int) -> None:
    moments = _moments(_random(count, width, 2) * 3 + 1)
    assert 0 <= frechet_distance(moments, moments) < 1e-9


@pytest.mark.parametrize("counts", [(300, 200), (300, 30), (30, 20)])
def test_equals_torch_fidelity_and_is_symmetric(counts: tuple[int, int]) -> None:
    mixing = _random(60, 60, 5)
    first = _random(counts[0], 60, 6) @ mixing
    second = 0.7 * _random(counts[1], 60, 7) @ mixing + 0.2
    distance = frechet_distance(_moments(first), _moments(second))
    assert distance == pytest.approx(_oracle(first, second), rel=1e-5)
    swapped = frechet_distance(_moments(second), _moments(first))
    assert swapped == pytest.approx(distance, rel=1e-9)


def _exact(first: torch.Tensor, second: torch.Tensor) -> float:
    """Return the distance by the nuclear norm of B Aᵀ, A and B the centered features."""
    a, b = (f - f.mean(dim=0) for f in (first, second))
    degrees = (len(first) - 1, len(second) - 1)
    trace = torch.linalg.svdvals(b @ a.T).sum() / math.sqrt(math.prod(degrees))
    spread = a.square().sum() / degrees[0] + b.square().sum() / degrees[1]
    means = (first.mean(dim=0) - second.mean(dim=0)).square().sum()
    return float(means + spread - 2 * trace)


def test_fewer_images_than_features_is_exact() -> None:
    first, second = _random(12, 64, 8), 2 * _random(9, 64, 9) + 1
    distance = frechet_distance(_moments(first), _moments(second))
    assert distance == pytest.approx(_exact(first, second), rel=1e-11)


def test_dependent_features_on_one_side_are_exact() -> None:
    first, second = _random(300, 20, 8).repeat(1, 4), 2 * _random(200, 80, 9) + 1
    distance = frechet_distance(_moments(first), _moments(second))
    assert distance == pytest.approx(_exact(first, second), rel=1e-11)


def test_features_that_never_fire_do_no_harm() -> None:
    first, second = _random(200, 10, 10), _random(150, 10, 11) * 2
    dead = [torch.cat([f, torch.zeros(len(f), 5).double()], dim=1) for f in (first, second)]
    alive = frechet_distance(_moments(first), _moments(second))
    assert frechet_distance(_moments(dead[0]), _moments(dead[1])) == pytest.approx(alive, rel=1e-9)


def test_a_large_mean_does_not_drown_a_short_rank() -> None:
    first, second = _random(20, 40, 12), _random(25, 40, 13) * 2
    near = frechet_distance(_moments(first), _moments(second))
    far = frechet_distance(_moments(first + 1000), _moments(second + 1000))
    assert far == pytest.approx(near, rel=1e-7)


def test_constant_features_leave_the_distance_of_the_means() -> None:
    ones, twos = _moments(torch.ones(5, 3)), _moments(torch.full((4, 3), 2.0))
    assert frechet_distance(ones, twos) == pytest.approx(3.0, rel=1e-12)


def test_one_image_is_refused() -> None:
    with pytest.raises(EvaluationError, match="at least 2 images"):
        frechet_distance(_moments(_random(1, 3, 1)), _moments(_random(5, 3, 2)))


def test_broken_features_are_refused() -> None:
    broken = _random(5, 3, 1)
    broken[2, 1] = np.nan
    with pytest.raises(EvaluationError, match="NaN or Inf"):
        frechet_distance(_moments(_random(5, 3, 2)), _moments(broken))
