"""The image encoder's start: torchvision's file, a DAMSM file, random values, or a refusal."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor
from torchvision.models import Inception3, inception_v3

from t2i_hpc.common.errors import ConfigurationError
from t2i_hpc.config.encoder_settings import PretrainedTrunkConfig
from t2i_hpc.systems.inception_weights import build_pretraining_encoder

torch.set_num_threads(1)


def build(**values: Any) -> torch.nn.Module:
    return build_pretraining_encoder(PretrainedTrunkConfig(**values), 16)


@pytest.fixture(scope="module")
def classifier() -> Inception3:
    """torchvision's network with weights and statistics of which none is neutral."""
    torch.manual_seed(0)
    network = inception_v3(weights=None, aux_logits=True, init_weights=False)
    for module in network.modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        if isinstance(module, torch.nn.BatchNorm2d):
            module.get_buffer("running_mean").normal_(0, 0.1)
            module.get_buffer("running_var").uniform_(0.5, 1.5)
    network.eval()
    return network


@pytest.mark.parametrize("form", ["pth", "pth of 2018", "safetensors"])
def test_torchvisions_file_gives_torchvisions_features(
    classifier: Inception3, form: str, tmp_path: Path
) -> None:
    state = dict(classifier.state_dict())
    if form == "pth of 2018":
        state = {name: value for name, value in state.items() if "num_batches" not in name}
    path = tmp_path / f"inception.{form.split(maxsplit=1)[0]}"
    if form == "safetensors":
        save_file(state, path)
    else:
        torch.save(state, path)
    seen: dict[str, Tensor] = {}
    hooks = [
        getattr(classifier, name).register_forward_hook(
            lambda _, __, output, name=name: seen.update({name: output})
        )
        for name in ("Mixed_6e", "Mixed_7c")
    ]
    images = torch.rand(1, 3, 299, 299) * 2 - 1
    with torch.no_grad():
        classifier(images)
        encoder = build(imagenet_weights=str(path)).eval()
        local, pooled = encoder.get_submodule("trunk")(images)
    for hook in hooks:
        hook.remove()
    torch.testing.assert_close(local, seen["Mixed_6e"], rtol=1e-4, atol=1e-4)
    expected = F.adaptive_avg_pool2d(seen["Mixed_7c"], 1).flatten(1)
    torch.testing.assert_close(pooled, expected, rtol=1e-4, atol=1e-4)


def test_random_values_are_said_loudly_and_keep_signals_alive(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING):
        encoder = build(trunk="random").eval()
    assert "RANDOM Inception-v3" in caplog.text
    with torch.no_grad():
        local, pooled = encoder.get_submodule("trunk")(torch.randn(2, 3, 128, 128))
    assert local.std() > 1e-2
    assert (pooled[0] - pooled[1]).abs().max() > 1e-2


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({}, "weights are in no package"),
        ({"trunk": "random", "imagenet_weights": "x.pth"}, "one start"),
        ({"weights": "a", "imagenet_weights": "x.pth"}, "one start"),
        ({"name": "efficientnet_lite0", "trunk": "random"}, "belongs to inception_v3"),
        ({"imagenet_weights": "nowhere.pth"}, "cannot be loaded"),
    ],
)
def test_other_starts_are_refused(values: dict[str, str], said: str) -> None:
    with pytest.raises(ConfigurationError, match=said) as caught:
        build(**values)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"Conv2d_1a_3x3.conv.weight": torch.zeros(32, 3, 3, 3)}, "it lacks"),
        ({"Conv2d_1a_3x3.conv.weight": torch.zeros(1)}, "size mismatch"),
        ([1, 2], "no state dict"),
        (Path("evil"), "cannot be loaded"),
        (b"no torch file", "cannot be loaded"),
    ],
)
def test_a_file_of_something_else_is_refused(content: object, said: str, tmp_path: Path) -> None:
    path = tmp_path / "file.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(ConfigurationError, match=said) as caught:
        build(imagenet_weights=str(path))
    assert "\n" not in str(caught.value)


def test_the_packaged_network_needs_no_file() -> None:
    assert build(name="efficientnet_lite0").get_submodule("trunk.features")
