"""EfficientNet-Lite0: the packaged network, only faster; sound on pictures it should know."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from efficientnet_lite_pytorch import EfficientNet
from torch import Tensor

from t2i_hpc.config.evaluation import EvaluationConfig
from t2i_hpc.config.fields import entries
from t2i_hpc.evaluation.detectors import DETECTORS, build_detector, identify_detector
from t2i_hpc.evaluation.detectors.efficientnet_lite import EfficientNetLite0, EfficientNetLite2
from t2i_hpc.models.efficientnet import efficientnet_path
from tests.evaluation.conftest import some_images

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def detector() -> EfficientNetLite0:
    torch.set_num_threads(1)
    return EfficientNetLite0(CPU)


def _packaged_features(images: Tensor, size: int = 0, side: int = 224) -> Tensor:
    network = EfficientNet.from_name(f"efficientnet-lite{size}")
    network.load_state_dict(torch.load(efficientnet_path(size), weights_only=True))
    network.eval()
    inputs = F.interpolate(images.float(), (side, side), mode="bilinear", antialias=True)
    with torch.no_grad():
        result: Tensor = network.extract_features((inputs - 127) / 128).mean(dim=(2, 3))
    return result


def test_features_are_those_of_the_packaged_network(detector: EfficientNetLite0) -> None:
    images = some_images(3, 64, seed=1)
    features = detector.features(images)
    assert features.shape == (3, detector.identity.width)
    assert features.dtype == torch.float32
    torch.testing.assert_close(features, _packaged_features(images), rtol=1e-4, atol=1e-5)


def test_the_wider_network_is_the_packaged_one_too() -> None:
    detector = EfficientNetLite2(CPU)
    images = some_images(1, 64, seed=1)
    expected = _packaged_features(images, 2, EfficientNet.get_image_size("efficientnet-lite2"))
    torch.testing.assert_close(detector.features(images), expected, rtol=1e-4, atol=1e-5)
    assert detector.identity.metric_name == "FD (EfficientNet-Lite2)"
    assert detector.identity.sha256.startswith("9656183e")


def test_features_are_deterministic_and_rows_do_not_see_each_other(
    detector: EfficientNetLite0,
) -> None:
    images = some_images(4, 64, seed=2)
    features = detector.features(images)
    assert torch.equal(detector.features(images), features)
    others = torch.cat([images[:2], torch.zeros_like(images[2:])])
    assert torch.equal(detector.features(others)[:2], features[:2])


def test_the_batch_size_moves_features_in_the_last_digits_alone(
    detector: EfficientNetLite0,
) -> None:
    images = some_images(7, 64, seed=5)
    whole = detector.features(images)
    for size in (1, 3):
        batches = torch.cat([detector.features(batch) for batch in images.split(size)])
        assert (batches - whole).abs().max() < 1e-5 * whole.abs().max()


def test_large_images_are_averaged_not_sampled(detector: EfficientNetLite0) -> None:
    picture = some_images(1, 672, seed=3, levels=150) + 50
    rows, columns = torch.meshgrid(torch.arange(672), torch.arange(672), indexing="ij")
    checkered = picture + (rows + columns) % 2 * 50
    mean_level = (picture + 25).to(torch.uint8)
    features = detector.features(mean_level)
    difference = (detector.features(checkered.to(torch.uint8)) - features).abs().mean()
    assert difference < 0.1 * features.abs().mean()


def test_it_never_calls_itself_fid(detector: EfficientNetLite0) -> None:
    assert detector.identity.metric_name == "FD (EfficientNet-Lite0)"
    assert "not FID" in detector.identity.label
    assert detector.identity.sha256.startswith("57934424")


def test_every_detector_on_offer_is_registered() -> None:
    meanings = {entry.key: entry.meaning for entry in entries(EvaluationConfig())}
    assert set(meanings["detector"].choices or ()) == set(DETECTORS)
    config = EvaluationConfig(detector="efficientnet_lite0")
    built = build_detector(config, CPU)
    assert built.identity == identify_detector(config)
    assert built.identity.name == "efficientnet_lite0"
