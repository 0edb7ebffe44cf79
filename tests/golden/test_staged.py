"""AttnGAN's and DM-GAN's three stages and three discriminators against the released code."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from t2i_hpc.models.staged_discriminator import StagedDiscriminator
from t2i_hpc.models.staged_generator import StagedGenerator, StagedImages
from tests.golden import fill
from tests.golden.case import VALUE, Case, case

SYSTEMS = {"attn_gan": "attngan", "dm_gan": "dmgan"}
SIDES = (64, 128, 256)


@pytest.fixture(params=SYSTEMS)
def golden(request: pytest.FixtureRequest) -> tuple[str, Case]:
    return request.param, case(SYSTEMS[request.param])


@pytest.mark.parametrize("reference_mask", [False, True])
def test_images_attention_and_condition(golden: tuple[str, Case], reference_mask: bool) -> None:
    """No caption of the case is padded, so both ways to hide words give the same."""
    system, stored = golden
    generator = stored.network(system, "generator", "G")
    assert isinstance(generator, StagedGenerator)
    generator.reference_mask = reference_mask
    noise, sentence = stored.input("z", 100), stored.input("c", 256)
    words, nowhere = stored.input("w", 256, 18), torch.zeros(2, 18, dtype=torch.bool)
    generated: StagedImages = generator(noise, sentence, words, nowhere)
    assert generated.condition is not None
    stored.check_values("mu", generated.condition.mean)
    stored.check_values("logvar", generated.condition.log_variance)
    assert [image.shape[-1] for image in generated.images] == list(SIDES)
    for index, image in enumerate(generated.images):
        stored.check(f"image{index}", image)
    for index, attention in enumerate(generated.attention):
        assert attention.shape == (2, 18, SIDES[index], SIDES[index])
        stored.check(f"attention{index}", attention)


@pytest.mark.parametrize("index", range(3))
def test_features_and_both_logits(golden: tuple[str, Case], index: int) -> None:
    system, stored = golden
    discriminator = stored.network(system, f"discriminator{SIDES[index]}", f"D {index}")
    assert isinstance(discriminator, StagedDiscriminator)
    shape = (2, 3, SIDES[index], SIDES[index])
    image = fill.values(f"x{index}", shape, stored.seed, 0.5).clamp(-1, 1)
    stored.check_norm(f"D{index}.features", discriminator.features(image))
    matching, real = discriminator(image, stored.input("c", 256))
    for name, logits in (("cond", matching), ("uncond", real)):
        expected = stored.values[f"D{index}.{name}"]
        found = torch.sigmoid(logits).detach().numpy()
        np.testing.assert_allclose(found, expected, rtol=0, atol=VALUE)
