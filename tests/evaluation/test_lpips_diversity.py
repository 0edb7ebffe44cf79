"""LPIPS diversity: the authors' distances of all pairs, of networks with known weights."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision import models

from t2i_hpc.common.errors import EvaluationError
from t2i_hpc.evaluation.collectors import FeatureBatch
from t2i_hpc.evaluation.lpips_diversity import (
    LPIPS,
    CaptionDistances,
    check_batches,
    lpips_diversity,
    lpips_identity,
    mean_distance,
    metric_name,
)
from tests.evaluation.conftest import some_images

CPU = torch.device("cpu")
# What lpips 0.1.4, the authors' package, gives for the pairs 0-1, 0-2 and 1-2 of these images with
# the weights below.
AUTHORS = {
    "alexnet": (0.06221228837966919, 0.0616840161383152, 0.08571387082338333),
    "vgg16": (1.8242464065551758, 1.5684752464294434, 1.4603865146636963),
}
FILES = {
    "alexnet": ("alexnet-owt-7be5be79.pth", "alex.pth", (64, 192, 384, 256, 256)),
    "vgg16": ("vgg16-397923af.pth", "vgg.pth", (64, 128, 256, 512, 512)),
}


def known_features(builder: str) -> dict[str, torch.Tensor]:
    """Return known weights of torchvision's layers, without those that LPIPS does not read."""
    layers = getattr(models, builder)(weights=None).features
    values = {}
    for name, value in layers.state_dict().items():
        wave = torch.sin(torch.arange(value.numel()) * 0.7).reshape(value.shape)
        deep = 0.02 if builder == "alexnet" else value[0].numel() ** -0.5
        values[f"features.{name}"] = wave * (deep if value.ndim > 1 else 0.5)
    return values


def known_heads(widths: tuple[int, ...]) -> dict[str, torch.Tensor]:
    """Return known weights of channels."""
    return {
        f"lin{n}.model.1.weight": torch.cos(torch.arange(width) * 0.3).abs()[None, :, None, None]
        for n, width in enumerate(widths)
    }


@pytest.fixture(scope="module", params=list(FILES))
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write files of known weights into a folder with the network's name."""
    path: Path = tmp_path_factory.mktemp("lpips") / request.param
    backbone, weights, widths = FILES[request.param]
    path.mkdir()
    torch.save(known_features(request.param), path / backbone)
    torch.save(known_heads(widths), path / weights)
    return path


def test_distances_are_the_authors(folder: Path) -> None:
    expected = AUTHORS[folder.name]
    vectors = LPIPS(str(folder), CPU).vectors(some_images(3, 64, seed=1))
    apart = [float((vectors[i] - vectors[j]).square().sum()) for i, j in combinations(range(3), 2)]
    assert apart == pytest.approx(expected, rel=1e-5)
    assert mean_distance(vectors) == pytest.approx(np.mean(expected), rel=1e-5)


def test_the_network_is_in_protocol_and_name(folder: Path) -> None:
    identity = lpips_identity(str(folder))
    network, name = {
        "alexnet": ("AlexNet", "LPIPS diversity"),
        "vgg16": ("VGG-16", "LPIPS diversity (VGG-16)"),
    }[folder.name]
    assert identity.startswith(f"{network} ")
    assert metric_name(identity) == name


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
    backbone, weights, _ = FILES[folder.name]
    with pytest.raises(EvaluationError, match=r"evaluation\.lpips is empty: name a folder with"):
        lpips_identity("")
    with pytest.raises(EvaluationError, match=r"neither alexnet-.* nor vgg16-.*: name a folder"):
        lpips_identity(str(tmp_path))
    (tmp_path / backbone).write_bytes(b"no network")
    with pytest.raises(EvaluationError, match=rf"has no {weights}: name a folder"):
        lpips_identity(str(tmp_path))
    (tmp_path / weights).write_bytes((folder / weights).read_bytes())
    with pytest.raises(EvaluationError, match="is damaged or no file of LPIPS"):
        LPIPS(str(tmp_path), CPU)
    for name, _, _ in FILES.values():
        (tmp_path / name).write_bytes(b"no network")
    with pytest.raises(EvaluationError, match=r"one decides the network: keep each"):
        lpips_identity(str(tmp_path))


def test_heads_of_another_network_are_refused(folder: Path, tmp_path: Path) -> None:
    backbone, weights, widths = FILES[folder.name]
    (tmp_path / backbone).write_bytes((folder / backbone).read_bytes())
    for heads in (known_heads((*widths[:-1], 7)), {k: -v for k, v in known_heads(widths).items()}):
        torch.save(heads, tmp_path / weights)
        with pytest.raises(EvaluationError, match="is damaged or no file of LPIPS"):
            LPIPS(str(tmp_path), CPU)


def test_batches_that_cut_captions_apart_are_refused() -> None:
    with pytest.raises(
        EvaluationError, match=r"batch_size=32 cuts captions of .*=5 images.*take 30"
    ):
        check_batches(32, 5)
