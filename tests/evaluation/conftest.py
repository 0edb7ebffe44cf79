"""Inception-v3 with random weights in a file, and images to look at."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest
import torch
from torch import Tensor, nn
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3


@pytest.fixture(scope="session")
def inception_file(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Weights under which signals keep their size through all 94 convolutions."""
    torch.set_num_threads(1)
    nothing = io.BytesIO()
    torch.save({}, nothing)
    nothing.seek(0)
    torch.manual_seed(4)
    with mock.patch.object(FeatureExtractorInceptionV3, "load_state_dict"):
        network = FeatureExtractorInceptionV3(
            "random", ["2048"], feature_extractor_weights_path=nothing
        )
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    path = tmp_path_factory.mktemp("weights") / "random-inception.pth"
    torch.save({name: value.half() for name, value in network.state_dict().items()}, path)
    yield path
    path.unlink()


def some_images(count: int, size: int, seed: int, levels: int = 256) -> Tensor:
    """Return blotchy images, uint8 (count, 3, size, size), values below `levels`."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randint(0, levels, (count, 3, 4, 4), generator=generator).float()
    return nn.functional.interpolate(coarse, (size, size)).to(torch.uint8)
