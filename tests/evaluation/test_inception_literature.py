"""The literature's Inception: torchvision's network with images scaled as its users did."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.models import Inception3, inception_v3

from t2i_hpc.common.errors import EvaluationError
from t2i_hpc.evaluation.detectors.inception import LiteratureInceptionV3
from tests.evaluation.conftest import some_images

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def network() -> Inception3:
    """torchvision's network with random weights under which signals keep their size."""
    torch.manual_seed(5)
    made = inception_v3(weights=None, aux_logits=False, init_weights=False, transform_input=True)
    for module in made.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    return made.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def weights(network: Inception3, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    path = tmp_path_factory.mktemp("weights") / "random.pth"
    old = {k: v for k, v in network.state_dict().items() if "num_batches_tracked" not in k}
    torch.save(old, path)
    yield path
    path.unlink()


def _as_the_literature(network: Inception3, images: Tensor) -> Tensor:
    """Resize with Pillow, scale to [0, 1], and pass torchvision's own transform_input."""
    resized = [
        np.asarray(Image.fromarray(i.permute(1, 2, 0).numpy()).resize((299, 299), 2))
        for i in images
    ]
    inputs = torch.from_numpy(np.stack(resized)).permute(0, 3, 1, 2).float() / 255
    network.fc = nn.Identity()
    features: Tensor = network(inputs)
    return features


def test_features_are_the_literatures(weights: Path, network: Inception3) -> None:
    images = some_images(2, 256, seed=1)
    detector = LiteratureInceptionV3(weights, CPU)
    features = detector.features(images)
    expected = _as_the_literature(network, images)
    assert features.shape == (2, 2048)
    assert (features - expected).abs().max() < 1e-3 * expected.abs().max()


def test_it_names_its_score_by_its_weights(weights: Path) -> None:
    identity = LiteratureInceptionV3(weights, CPU).identity
    assert identity.metric_name == "FD (torchvision Inception-v3, other weights)"
    assert identity.classes == 0
    assert "not TensorFlow's FID" in identity.label


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    for content in ({"some.weight": torch.zeros(3)}, [torch.zeros(3)]):
        torch.save(content, path)
        with pytest.raises(EvaluationError, match=r"fetch what=inception_literature"):
            LiteratureInceptionV3(path, CPU)
