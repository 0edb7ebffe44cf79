"""LPIPS diversity: the authors' distances of all pairs, of networks with known weights."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.models import alexnet

from t2i_hpc.common.errors import EvaluationError
from t2i_hpc.evaluation.collectors import FeatureBatch
from t2i_hpc.evaluation.lpips_diversity import (
    LPIPS,
    CaptionDistances,
    check_batches,
    lpips_diversity,
    lpips_identity,
    mean_distance,
)
from tests.evaluation.conftest import some_images

CPU = torch.device("cpu")
# What lpips 0.1.4, the authors' package, gives for the pairs 0-1, 0-2 and 1-2 of these images with
# the weights below.
AUTHORS = (0.06221228837966919, 0.0616840161383152, 0.08571387082338333)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write files of known weights, without the layers that LPIPS does not read."""
    path = tmp_path_factory.mktemp("lpips")
    features = {
        f"features.{name}": torch.sin(torch.arange(value.numel()) * 0.7).reshape(value.shape)
        * (0.02 if value.ndim > 1 else 0.5)
        for name, value in alexnet(weights=None).features.state_dict().items()
    }
    torch.save(features, path / "alexnet-owt-7be5be79.pth")
    widths = (64, 192, 384, 256, 256)
    linear = {
        f"lin{n}.model.1.weight": torch.cos(torch.arange(width) * 0.3).abs()[None, :, None, None]
        for n, width in enumerate(widths)
    }
    torch.save(linear, path / "alex.pth")
    return path


def test_distances_are_the_authors(folder: Path) -> None:
    vectors = LPIPS(str(folder), CPU).vectors(some_images(3, 64, seed=1))
    apart = [float((vectors[i] - vectors[j]).square().sum()) for i, j in combinations(range(3), 2)]
    assert apart == pytest.approx(AUTHORS, rel=1e-5)
    assert mean_distance(vectors) == pytest.approx(np.mean(AUTHORS), rel=1e-5)


def test_captions_are_averaged_and_incomplete_ones_left_out() -> None:
    images = some_images(7, 8, seed=3)
    rows = images.flatten(1).double().numpy() / 255
    expected = [
        np.mean([np.square(a - b).sum() for a, b in combinations(rows[first : first + 3], 2)])
        for first in (0, 3)
    ]
    sums = CaptionDistances(lambda batch: batch.flatten(1).float() / 255, 3)
    nothing = torch.zeros(7, 0)
    sums.add(FeatureBatch(range(7), images, nothing, nothing))
    mean, error = lpips_diversity(sums.arrays())
    assert mean == pytest.approx(np.mean(expected), rel=1e-6)
    assert error == pytest.approx(np.std(expected, ddof=1) / 2**0.5, rel=1e-5)


def test_what_lpips_lacks_is_said_with_where_it_is(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match=r"evaluation\.lpips is empty: name a folder with"):
        lpips_identity("")
    (tmp_path / "alexnet-owt-7be5be79.pth").write_bytes(b"no network")
    with pytest.raises(EvaluationError, match=r"has no alex\.pth: name a folder"):
        lpips_identity(str(tmp_path))
    (tmp_path / "alex.pth").write_bytes((folder / "alex.pth").read_bytes())
    with pytest.raises(EvaluationError, match="is damaged or no file of LPIPS"):
        LPIPS(str(tmp_path), CPU)
    with pytest.raises(
        EvaluationError, match=r"batch_size=32 cuts captions of .*=5 images.*take 30"
    ):
        check_batches(32, 5)
