"""Moments are exact sums: any split and order gives the same mean and covariance."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from t2i_hpc.common.errors import EvaluationError
from t2i_hpc.evaluation.fid import Moments


def _features(count: int = 50, width: int = 7) -> torch.Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(3)) + 2


def _moments(features: torch.Tensor) -> Moments:
    moments = Moments.empty(features.shape[1])
    moments.add_rows(features)
    return moments


def test_mean_and_covariance_are_numpys() -> None:
    features = _features()
    moments = _moments(features)
    values = features.double().numpy()
    np.testing.assert_allclose(moments.mean().numpy(), values.mean(axis=0), rtol=1e-13)
    expected = np.cov(values, rowvar=False)
    np.testing.assert_allclose(moments.covariance().numpy(), expected, rtol=1e-11, atol=1e-12)


def test_moments_are_float64_whatever_the_features_are() -> None:
    moments = _moments(torch.full((4, 3), 1e4).half())
    assert moments.total.dtype == moments.outer.dtype == torch.float64
    assert moments.outer[0, 0] == 4e8


@pytest.mark.parametrize("shards", [1, 2, 3, 7])
def test_sums_of_shards_are_those_of_the_whole_in_any_order(shards: int) -> None:
    features = _features()
    whole = _moments(features).arrays()
    split = [_moments(chunk).arrays() for chunk in features.tensor_split(shards)]
    for order in (split, split[::-1]):
        for name, expected in whole.items():
            merged = sum((shard[name] for shard in order), start=np.zeros_like(expected))
            np.testing.assert_allclose(merged, expected, rtol=1e-12)


def test_arrays_come_back() -> None:
    moments = _moments(_features())
    again = Moments.from_arrays(moments.arrays())
    assert again.count == moments.count
    assert torch.equal(again.total, moments.total)
    assert torch.equal(again.outer, moments.outer)


def test_too_few_images_are_refused() -> None:
    with pytest.raises(EvaluationError, match="no images"):
        Moments.empty(3).mean()
    with pytest.raises(EvaluationError, match="at least 2 images"):
        _moments(_features(1)).covariance()
