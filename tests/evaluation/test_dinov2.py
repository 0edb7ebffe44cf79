"""DINOv2's features are those of transformers' own network, in every metric over features."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import Dinov2Model
from transformers.models.bit import BitImageProcessor

from t2i_hpc.common.errors import EvaluationError
from t2i_hpc.common.files import sha256_of_file
from t2i_hpc.config.evaluation import EvaluationConfig
from t2i_hpc.evaluation.comparison import Comparison, Subject
from t2i_hpc.evaluation.compute import Sharding, merged
from t2i_hpc.evaluation.detectors import build_detector, identify_detector
from t2i_hpc.evaluation.detectors.detector import Detector
from tests.evaluation.comparing import PROTOCOL, make_comparison
from tests.evaluation.conftest import some_images
from tests.evaluation.pretrained import WIDTH, save_clip, save_dinov2

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_dinov2(tmp_path_factory.mktemp("dinov2"))


def settings(given: Path | str, precision: str = "float32") -> EvaluationConfig:
    return EvaluationConfig(
        detector="dinov2", detector_weights=str(given), detector_precision=precision
    )


@pytest.fixture(scope="module")
def detector(folder: Path) -> Detector:
    torch.set_num_threads(1)
    return build_detector(settings(folder), CPU)


def _class_tokens(folder: Path, images: Tensor) -> Tensor:
    """Return what the library's own preprocessing and network make of whole images."""
    side = {"height": 224, "width": 224}
    prepare = BitImageProcessor(size=side, resample=3, do_center_crop=False)
    inputs = prepare(
        list(images),
        image_mean=[0.485, 0.456, 0.406],
        image_std=[0.229, 0.224, 0.225],
        return_tensors="pt",
    )
    with torch.no_grad():
        result: Tensor = Dinov2Model.from_pretrained(folder)(**inputs).pooler_output
    return result


@pytest.mark.parametrize("size", [64, 224, 256])
def test_features_are_the_class_tokens_of_transformers(
    folder: Path, detector: Detector, size: int
) -> None:
    images = some_images(3, size, seed=size)
    features = detector.features(images)
    assert features.shape == (3, WIDTH)
    assert features.dtype == torch.float32
    assert features.std(dim=0).min() > 1e-2
    # The library rounds resized images to whole levels, which moves features a little.
    close = 1e-5 if size == 224 else 5e-3
    torch.testing.assert_close(features, _class_tokens(folder, images), rtol=close, atol=close)


def test_its_identity_says_what_it_is(folder: Path, detector: Detector) -> None:
    identity = detector.identity
    assert identity == identify_detector(settings(folder))
    assert identity == identify_detector(settings(folder / "model.safetensors"))
    assert identity.metric_name == "FD (DINOv2)"
    assert identity.sha256 == sha256_of_file(folder / "model.safetensors")
    assert "not FID" in identity.label
    other = identify_detector(settings(folder, "bfloat16"))
    assert other.metric_name == "FD (DINOv2, bfloat16)"
    assert other.preprocessing != identity.preprocessing


def test_bfloat16_gives_float32_features_nearby(folder: Path, detector: Detector) -> None:
    images = some_images(2, 64, seed=3)
    features = build_detector(settings(folder, "bfloat16"), CPU).features(images)
    assert features.dtype == torch.float32
    difference = (features - detector.features(images)).abs().max()
    assert 0 < difference < 0.1


def test_all_metrics_over_features_are_equal_over_parts(tmp_path: Path, detector: Detector) -> None:
    results = []
    for shards in (1, 3):
        comparison = _comparison(tmp_path / str(shards), shards, detector)
        comparison.check()
        comparison.compute(range(shards), detector)
        rows = comparison.score()
        names = [row["metric"] for row in rows]
        assert names == ["KID (DINOv2)", "precision (DINOv2)", "recall (DINOv2)", "FD (DINOv2)"]
        sums = merged(comparison.generated, comparison.sharding).sums
        results.append(([row["value"] for row in rows], sums["outer"]))
    assert results[0][0] == pytest.approx(results[1][0], rel=1e-9)
    np.testing.assert_allclose(results[0][1], results[1][1], rtol=1e-9)
    assert results[0][0][3] > 0


def _comparison(output: Path, shards: int, detector: Detector) -> Comparison:
    def images_of(numbers: range) -> Tensor:
        return torch.cat([some_images(1, 32, seed=number) for number in numbers])

    def draw_real(numbers: range) -> Tensor:
        return torch.cat([some_images(1, 32, number % 10 + 100, 150) for number in numbers])

    return replace(
        make_comparison(output, metrics=("fid", "kid", "prc")),
        protocol=replace(PROTOCOL, images=11, real_images=10, kid_subset_size=6),
        subject=Subject("c" * 64, 0, images_of),
        real_images_of=draw_real,
        detector=detector.identity,
        sharding=Sharding(shards, 4),
    )


def test_an_inception_score_is_refused(tmp_path: Path, detector: Detector) -> None:
    comparison = replace(_comparison(tmp_path, 1, detector), metrics=("is",))
    with pytest.raises(EvaluationError, match="dinov2 serves none"):
        comparison.check()


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ("", "evaluation.detector_weights is empty: name the folder of a dinov2 model"),
        ("nowhere", r"nowhere/config\.json is missing"),
        ("clip", "holds a network of the kind 'clip'"),
        ("damaged", r"config\.json is no JSON"),
        ("narrow", "states no hidden_size"),
    ],
)
def test_what_is_no_folder_of_dinov2_is_refused(tmp_path: Path, given: str, sentence: str) -> None:
    save_clip(tmp_path / "clip")
    for name, content in (("damaged", "{"), ("narrow", '{"model_type": "dinov2"}')):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(content)
        (tmp_path / name / "model.safetensors").write_bytes(b"")
    with pytest.raises(EvaluationError, match=sentence):
        identify_detector(settings(tmp_path / given if given else ""))


@pytest.mark.parametrize("harm", ["lost", "cut", "other", "deeper"])
def test_weights_that_do_not_fit_are_refused_not_drawn_at_random(tmp_path: Path, harm: str) -> None:
    folder = save_dinov2(tmp_path / "dinov2")
    weights = folder / "model.safetensors"
    if harm == "cut":
        weights.write_bytes(weights.read_bytes()[:-100])
    else:
        tensors = load_file(weights)
        name = next(key for key in tensors if "cls_token" in key)
        kept = {key: value for key, value in tensors.items() if key != name}
        changed = {} if harm == "lost" else {name: torch.zeros(1, 1, WIDTH + 1)}
        if harm == "deeper":
            layers = {key: value for key, value in kept.items() if "layer.0." in key}
            deeper = {
                key.replace("layer.0.", "layer.9."): value.clone() for key, value in layers.items()
            }
            changed = {name: tensors[name], **deeper}
        save_file({**kept, **changed}, weights, metadata={"format": "pt"})
    with pytest.raises(EvaluationError, match="is damaged or does not hold the network"):
        build_detector(settings(folder), CPU)


def test_the_missing_extra_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(EvaluationError, match=r"pip install 't2i-hpc\[transformers\]'"):
        identify_detector(settings(folder))
