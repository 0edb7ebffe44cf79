"""Text and image encoders."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from t2i_hpc.common.errors import ConfigurationError
from t2i_hpc.config.encoder_settings import ImageEncoderConfig
from t2i_hpc.models.global_batch import GlobalBatchNorm2d
from t2i_hpc.models.image_encoder import build_image_encoder, side_of
from t2i_hpc.models.text_encoder import LSTMTextEncoder
from t2i_hpc.systems.encoders import build_images_encoder
from tests.support.networks import parameter_count


def encoder() -> LSTMTextEncoder:
    torch.manual_seed(0)
    return LSTMTextEncoder(20, width=8, embedding_width=6).eval().requires_grad_(False)


def test_published_sizes() -> None:
    assert parameter_count(LSTMTextEncoder(5_450)) == 2_075_320
    assert parameter_count(LSTMTextEncoder(27_297)) == 8_629_420


def test_captions_do_not_depend_on_their_order_or_neighbors() -> None:
    network = encoder()
    tokens = torch.randint(1, 20, (4, 6))
    lengths = torch.tensor([2, 6, 1, 4])
    words, sentence = network(tokens, lengths)
    order = torch.tensor([3, 1, 0, 2])
    again, sentences = network(tokens[order], lengths[order])
    assert torch.allclose(again, words[order], atol=1e-6)
    assert torch.allclose(sentences, sentence[order], atol=1e-6)
    alone, _ = network(tokens[:1, :2], lengths[:1])
    assert torch.allclose(alone[0], words[0, :, :2], atol=1e-6)


def test_padding_is_zero_and_sentences_join_both_ends() -> None:
    words, sentence = encoder()(torch.randint(1, 20, (2, 5)), torch.tensor([3, 5]))
    assert words.shape == (2, 8, 5)
    assert float(words[0, :, 3:].abs().sum()) == 0
    assert torch.allclose(sentence[0, :4], words[0, :4, 2])
    assert torch.allclose(sentence[0, 4:], words[0, 4:, 0])


@pytest.mark.parametrize(("name", "side"), [("efficientnet_lite0", 14), ("inception_v3", 17)])
def test_image_encoders_give_regions_and_a_code(name: str, side: int) -> None:
    network = build_image_encoder(name, 256).train()
    features = network(torch.rand(2, 3, 64, 64) * 2 - 1)
    assert features.regions.shape == (2, 256, side, side)
    assert features.code.shape == (2, 256)
    assert not network.trunk.training
    trained = {key.split(".")[0] for key, p in network.named_parameters() if p.requires_grad}
    assert trained == {"heads"}


def test_the_inception_encoder_has_its_published_size() -> None:
    network = build_image_encoder("inception_v3", 256)
    assert parameter_count(network) == 22_506_720
    assert parameter_count(network, trainable=True) == 721_152


def test_corners_may_be_aligned_in_the_resize() -> None:
    images = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    seen = []
    for align_corners in (False, True):
        network = build_image_encoder("efficientnet_lite0", 8, align_corners=align_corners)
        network.trunk.get_submodule("features").register_forward_pre_hook(
            lambda _, given: seen.append(given[0])
        )
        network(images)
    for inputs, align_corners in zip(seen, (False, True), strict=True):
        resized = torch.nn.functional.interpolate(
            images, size=(224, 224), mode="bilinear", align_corners=align_corners
        )
        assert torch.allclose(inputs, (resized * 127.5 + 0.5) / 128, atol=1e-6)


def test_batch_statistics_move_in_training_and_only_there() -> None:
    network = build_image_encoder("inception_v3", 8, batch_statistics=True)
    norms = [m for m in network.trunk.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert len(norms) == 94
    assert {type(norm) for norm in norms} == {GlobalBatchNorm2d}
    assert not any(p.requires_grad for p in network.trunk.parameters())
    assert {norm.eps for norm in norms} == {0.001}
    images = torch.rand(2, 3, 64, 64) * 2 - 1
    before = norms[0].running_mean
    assert before is not None
    before = before.clone()
    with torch.no_grad():
        network.eval()(images)
        assert torch.equal(network.state_dict()["trunk.early.0.bn.running_mean"], before)
        trained = network.train()(images).code
        assert not torch.equal(network.state_dict()["trunk.early.0.bn.running_mean"], before)
        assert not torch.allclose(trained, network.eval()(images).code, atol=1e-3)


def test_batch_statistics_need_batch_norms() -> None:
    with pytest.raises(ValueError, match="no batch norms"):
        build_image_encoder("efficientnet_lite0", 8, batch_statistics=True)


def test_a_smaller_side_is_part_of_the_weights(tmp_path: Path) -> None:
    small = ImageEncoderConfig(name="efficientnet_lite0", side=112)
    network = build_images_encoder(small, 8)
    assert network(torch.zeros(1, 3, 64, 64)).regions.shape == (1, 8, 7, 7)
    weights = network.state_dict()
    assert side_of(weights) == 112
    path = tmp_path / "image_encoder.safetensors"
    save_file({name: value.contiguous() for name, value in weights.items()}, path)
    build_images_encoder(replace(small, weights=str(path)), 8)
    whole = replace(small, weights=str(path), side=None)
    with pytest.raises(ConfigurationError, match=r"at 112 px, .* give system\.image_encoder\.side"):
        build_images_encoder(whole, 8)
    with pytest.raises(ConfigurationError, match="is for efficientnet_lite0: leave it out"):
        build_images_encoder(replace(small, name="inception_v3", weights="any"), 8)
