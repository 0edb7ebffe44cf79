"""DAMSM's encoders, losses and their gradients against the released code."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from t2i_hpc.losses.damsm import Captions, DAMSMSettings, damsm_losses, word_attention
from t2i_hpc.models.image_encoder import ImageFeatures
from t2i_hpc.models.text_encoder import TextFeatures
from tests.golden.case import NORM, VALUE, case

LOSSES = {
    "image_to_words": "words_loss0",
    "words_to_image": "words_loss1",
    "image_to_sentence": "sent_loss0",
    "sentence_to_image": "sent_loss1",
}


def encoded() -> TextFeatures:
    golden = case("damsm")
    encoder = golden.network("damsm", "text", "text")
    with torch.no_grad():
        features: TextFeatures = encoder(golden.array("captions"), golden.array("lengths"))
    return features


def test_text_encoder() -> None:
    golden, text = case("damsm"), encoded()
    torch.testing.assert_close(text.words, golden.array("words"), rtol=0, atol=VALUE)
    torch.testing.assert_close(text.sentence, golden.array("sentence"), rtol=0, atol=VALUE)


def test_image_encoder() -> None:
    golden = case("damsm")
    with torch.no_grad():
        found: ImageFeatures = golden.network("damsm", "image", "image")(golden.images())
    assert found.regions.shape == (4, 256, 17, 17)
    golden.check_norm("regions", found.regions)
    mean = float(golden.values["regions.mean"])
    assert found.regions.double().mean().item() == pytest.approx(mean, abs=VALUE)
    stored = golden.array("regions.sub")
    torch.testing.assert_close(found.regions[:, ::8], stored, rtol=0, atol=VALUE)
    torch.testing.assert_close(found.code, golden.array("global"), rtol=0, atol=VALUE)


@pytest.mark.parametrize("mode", ["masked", "unmasked"])
def test_losses_and_gradients(mode: str) -> None:
    golden = case("damsm")
    text = encoded()
    leaves = {
        "words": text.words,
        "sentence": text.sentence,
        "regions": golden.input("regions", 256, 17, 17, scale=0.3),
        "global": golden.input("global", 256, scale=0.3),
    }
    leaves = {name: value.clone().requires_grad_() for name, value in leaves.items()}
    classes = golden.array("class_ids") if mode == "masked" else torch.arange(4)
    captions = Captions(leaves["words"], golden.array("lengths"), leaves["sentence"], classes)
    losses = damsm_losses(leaves["regions"], leaves["global"], captions, DAMSMSettings())
    for ours, theirs in LOSSES.items():
        stored = float(golden.values[f"{mode}.{theirs}"])
        assert losses[ours].item() == pytest.approx(stored, rel=NORM), ours
    torch.stack(list(losses.values())).sum().backward()
    for name, value in leaves.items():
        assert value.grad is not None
        stored = float(golden.values[f"{mode}.grad_l2.{name}"])
        assert value.grad.double().norm().item() == pytest.approx(stored, rel=NORM), name


def test_attention_of_a_caption_over_its_image() -> None:
    golden, text = case("damsm"), encoded()
    regions: Tensor = golden.input("regions", 256, 17, 17, scale=0.3)[:1].flatten(2)
    valid = torch.arange(18)[None] < golden.array("lengths")[:1, None]
    found = word_attention(regions, text.words[:1], valid, 5.0)[0, 0].t().reshape(1, 18, 17, 17)
    torch.testing.assert_close(found, golden.array("attention0"), rtol=0, atol=VALUE)
