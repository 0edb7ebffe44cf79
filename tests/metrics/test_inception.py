"""Features and FID equal torch-fidelity's, with the same (random) weights on both sides."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import Dataset
from torch_fidelity import calculate_metrics
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

from t2i_hpc.common.errors import EvaluationError
from t2i_hpc.metrics import weights
from t2i_hpc.metrics.detectors.inception import InceptionV3
from t2i_hpc.metrics.distance import frechet_distance
from t2i_hpc.metrics.evaluate import compute_part
from t2i_hpc.metrics.moments import Moments
from tests.metrics.conftest import some_images

CPU = torch.device("cpu")


class _Images(Dataset[Tensor]):
    def __init__(self, images: Tensor) -> None:
        self._images = images

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> Tensor:
        return self._images[index]


def _moments(detector: InceptionV3, images: Tensor) -> Moments:
    def draw(numbers: range) -> Tensor:
        return images[[number % len(images) for number in numbers]]

    return compute_part(draw, detector, range(len(images)), 4, lambda count: None)


def test_features_are_torch_fidelitys(inception_file: Path) -> None:
    images = some_images(2, 48, seed=1)
    oracle = FeatureExtractorInceptionV3(
        "oracle", ["2048"], feature_extractor_weights_path=str(inception_file)
    )
    features = InceptionV3(inception_file, CPU).features(images)
    assert features.shape == (2, 2048)
    assert features.dtype == torch.float32
    assert features.std() > 1e-2
    assert torch.equal(features, oracle(images)[0])


def test_fid_is_torch_fidelitys(inception_file: Path) -> None:
    first, second = some_images(14, 32, seed=2), some_images(10, 32, seed=3, levels=100)
    expected = calculate_metrics(
        input1=_Images(first),
        input2=_Images(second),
        fid=True,
        feature_extractor_weights_path=str(inception_file),
        batch_size=5,
        save_cpu_ram=True,
        cuda=False,
        cache=False,
        verbose=False,
    )["frechet_inception_distance"]
    detector = InceptionV3(inception_file, CPU)
    fid = frechet_distance(_moments(detector, first), _moments(detector, second))
    assert fid == pytest.approx(expected, rel=1e-5)


def test_other_weights_do_not_give_a_score_called_fid(
    inception_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    detector = InceptionV3(inception_file, CPU)
    assert detector.metric_name == "FD (Inception-v3, other weights)"
    assert "not FID" in detector.label
    published = weights.WeightsFile(f"https://example.org/weights-{detector.sha256[:8]}.pth")
    monkeypatch.setattr("t2i_hpc.metrics.detectors.inception.inception_file", lambda: published)
    assert InceptionV3(inception_file, CPU).metric_name == "FID"


class _Trap:
    """What a malicious pickle does when it is opened."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self._path,)


@pytest.mark.parametrize("kind", ["pickle", "torch", "text", "truncated"])
def test_files_that_are_no_weights_are_refused(tmp_path: Path, kind: str) -> None:
    path, sprung = tmp_path / "weights.pth", tmp_path / "sprung"
    if kind == "pickle":
        path.write_bytes(pickle.dumps(_Trap(sprung), protocol=2))
    elif kind == "torch":
        torch.save({"fc.bias": _Trap(sprung)}, path)
    elif kind == "text":
        path.write_text("404: Not Found")
    else:
        torch.save({"fc.bias": torch.from_numpy(np.zeros(1000))}, path)
        path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(EvaluationError, match="holds no weights"):
        InceptionV3(path, CPU)
    assert not sprung.exists()


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save({"some.weight": torch.zeros(3)}, path)
    with pytest.raises(EvaluationError, match="another network"):
        InceptionV3(path, CPU)
