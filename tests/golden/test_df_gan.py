"""Both of DF-GAN's layouts against its authors' code."""

from __future__ import annotations

import torch

from t2i_hpc.models.df_generator import EarlyDFGenerator
from t2i_hpc.models.discriminator import (
    DFDiscriminator,
    DFHead,
    MatchingDiscriminator,
    PairedDiscriminator,
)
from tests.golden.case import case


def test_generator() -> None:
    golden = case("dfgan")
    generator = golden.network("df_gan", "generator", "G", gain=0.7)
    generated = generator(golden.input("z", 100), golden.input("c", 256))
    golden.check("image", generated.images[-1])
    assert not generated.masks


def test_discriminator_and_head() -> None:
    golden = case("dfgan")
    discriminator = golden.network("df_gan", "discriminator", "D")
    head = golden.network("df_gan", "head", "C")
    assert isinstance(discriminator, DFDiscriminator)
    assert isinstance(head, DFHead)
    image, sentence = golden.images(), golden.input("c", 256)
    features: torch.Tensor = discriminator(image)
    golden.check("D.features", features)
    expected = golden.array("logit").flatten()
    torch.testing.assert_close(head(features, sentence), expected, rtol=0, atol=2e-4)
    paired = PairedDiscriminator(discriminator, head)
    torch.testing.assert_close(paired(image, sentence), expected, rtol=0, atol=2e-4)


def test_first_version() -> None:
    """Of tobran/DF-GAN at 9015356, its last commit before the version of CVPR 2022."""
    golden = case("dfgan_early")
    generator = golden.network("df_gan", "generator", "G", gain=golden.facts["gain"])
    assert isinstance(generator, EarlyDFGenerator)
    sentence = golden.input("c", 256)
    golden.check("image", generator(golden.input("z", 100), sentence).images[-1])
    discriminator = golden.network("df_gan", "discriminator", "D")
    assert isinstance(discriminator, MatchingDiscriminator)
    golden.check("D.features", discriminator.features(golden.images()))
    expected = golden.array("logit").flatten()
    logits = discriminator(golden.images(), sentence)
    torch.testing.assert_close(logits, expected, rtol=0, atol=2e-4)
