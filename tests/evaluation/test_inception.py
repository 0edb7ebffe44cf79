"""Features, FID, Inception score and KID equal torch-fidelity's, with the same random weights."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import Dataset
from torch_fidelity import calculate_metrics
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

from t2i_hpc.common.errors import EvaluationError
from t2i_hpc.config.evaluation import METRICS
from t2i_hpc.evaluation.comparison import Comparison, Subject
from t2i_hpc.evaluation.compute import MergedStatistics, Sharding
from t2i_hpc.evaluation.detectors import weights
from t2i_hpc.evaluation.detectors.inception import InceptionV3, inception_identity
from t2i_hpc.evaluation.metrics import Measured
from t2i_hpc.evaluation.reference_statistics import read_reference
from t2i_hpc.sampling.image_files import ImagesOf
from tests.evaluation.conftest import some_images
from tests.evaluation.test_protocol import PROTOCOL

CPU = torch.device("cpu")


class _Images(Dataset[Tensor]):
    def __init__(self, images: Tensor) -> None:
        self._images = images

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> Tensor:
        return self._images[index]


def test_features_are_torch_fidelitys(inception_file: Path) -> None:
    images = some_images(3, 48, seed=1)
    oracle = FeatureExtractorInceptionV3(
        "oracle",
        ["2048", "logits_unbiased"],
        feature_extractor_weights_path=str(inception_file),
    )
    expected, expected_logits = oracle(images)
    detector = InceptionV3(inception_file, CPU)
    features = detector.features(images)
    assert features.shape == (3, 2048)
    assert features.dtype == torch.float32
    assert features.std() > 1e-2
    assert (features - expected).abs().max() < 1e-5 * expected.abs().max()
    logits = detector.logits(features, images)
    assert logits.shape == (3, detector.identity.classes)
    assert (logits - expected_logits).abs().max() < 1e-5 * expected_logits.abs().max()


def test_scores_are_torch_fidelitys(inception_file: Path, tmp_path: Path) -> None:
    generated, real = some_images(14, 32, seed=2), some_images(11, 32, seed=3, levels=100)
    expected = calculate_metrics(
        input1=_Images(generated),
        input2=_Images(real),
        fid=True,
        isc=True,
        isc_splits=3,
        kid=True,
        kid_subsets=5,
        kid_subset_size=8,
        rng_seed=PROTOCOL.seed,
        feature_extractor_weights_path=str(inception_file),
        batch_size=5,
        save_cpu_ram=True,
        cuda=False,
        cache=False,
        verbose=False,
    )
    detector = InceptionV3(inception_file, CPU)
    comparison = Comparison(
        output=tmp_path,
        cache=tmp_path,
        subject=Subject("c" * 64, 0, _by_number(generated)),
        real_images_of=_by_number(real),
        detector=detector.identity,
        protocol=replace(
            PROTOCOL, images=14, real_images=11, splits=3, kid_subsets=5, kid_subset_size=8
        ),
        names=dict.fromkeys(METRICS, "oracle"),
        metrics=["fid", "is", "kid"],
        sharding=Sharding(2, 4),
        device=CPU,
    )
    comparison.compute(range(2), detector)
    score, kid, fid = comparison.score()
    assert fid["value"] == pytest.approx(expected["frechet_inception_distance"], rel=1e-5)
    for row, name in ((score, "inception_score"), (kid, "kernel_inception_distance")):
        assert row["value"] == pytest.approx(expected[f"{name}_mean"], rel=1e-5)
        assert row["std"] == pytest.approx(expected[f"{name}_std"], rel=1e-4)
    # The real images' statistics as pytorch-fid --save-stats writes them: the same FID.
    rows = detector.features(real).numpy()
    np.savez(tmp_path / "real.npz", mu=np.mean(rows, axis=0), sigma=np.cov(rows, rowvar=False))
    reference = read_reference(tmp_path / "real.npz", detector.identity)
    by_file = replace(comparison, metrics=["fid"], reference=reference.gaussian)
    (fid,) = by_file.score()
    assert fid["value"] == pytest.approx(expected["frechet_inception_distance"], rel=1e-5)


def _by_number(images: Tensor) -> ImagesOf:
    return lambda numbers: images[[number % len(images) for number in numbers]]


def test_other_weights_do_not_give_a_score_called_fid(
    inception_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    identity = inception_identity(inception_file, "own", "float32")
    assert identity.metric_name == "FD (Inception-v3, other weights)"
    assert "not FID" in identity.label
    assert identity.family
    published = weights.WeightsFile(f"https://example.org/weights-{identity.sha256[:8]}.pth")
    monkeypatch.setattr("t2i_hpc.evaluation.detectors.inception.inception_file", lambda: published)
    ways = [("own", "float32"), ("clean", "float32"), ("own", "bfloat16")]
    identities = [inception_identity(inception_file, *way) for way in ways]
    assert [i.metric_name for i in identities] == ["FID", "clean FID", "FID (bfloat16)"]
    names = [
        [Measured(NOTHING, None, PROTOCOL, each, CPU, {}).name(metric, more) for each in identities]
        for metric, more in (("KID", ""), ("precision", identities[0].network))
    ]
    assert names == [
        ["KID", "KID (clean resize)", "KID (bfloat16)"],
        [
            "precision (Inception-v3, not VGG-16)",
            "precision (Inception-v3, not VGG-16, clean resize)",
            "precision (Inception-v3, not VGG-16, bfloat16)",
        ],
    ]
    assert len({i.preprocessing for i in identities}) == 3


NOTHING = MergedStatistics({}, None)


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
