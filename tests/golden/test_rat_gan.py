"""RAT-GAN's generator and discriminator against their authors' code."""

from __future__ import annotations

import torch

from t2i_hpc.models.discriminator import MatchingDiscriminator
from t2i_hpc.models.rat_generator import RATGenerator
from tests.golden.case import case


def test_generator() -> None:
    golden = case("ratgan")
    generator = golden.network("rat_gan", "generator", "G", gain=golden.facts["gain"])
    assert isinstance(generator, RATGenerator)
    noise, sentence = golden.input("z", 100), golden.input("c", 256)
    golden.check("last_hidden", generator.recurrence(noise, sentence, 28)[-1])
    golden.check("image", generator(noise, sentence).images[-1])


def test_its_discriminator_is_that_of_ssa_gan() -> None:
    golden = case("ratgan")
    discriminator = golden.network("rat_gan", "discriminator", "D")
    assert isinstance(discriminator, MatchingDiscriminator)
    image, sentence = golden.images(), golden.input("c", 256)
    golden.check("D.features", discriminator.features(image))
    expected = golden.array("logit").flatten()
    torch.testing.assert_close(discriminator(image, sentence), expected, rtol=0, atol=2e-4)
