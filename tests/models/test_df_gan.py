"""DF-GAN's networks: sizes, initial values, gradients, and the first version's arithmetic."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from t2i_hpc.convert import export_reference
from t2i_hpc.models.df_generator import DFBlock, DFGenerator, EarlyDFGenerator
from t2i_hpc.models.discriminator import DFDiscriminator, DFHead, PairedDiscriminator
from tests.support.networks import parameter_count

GENERATORS = (DFGenerator, EarlyDFGenerator)
DEAD = 256 * 256 + 256


def shaken(module: nn.Module) -> nn.Module:
    """Move every parameter away from values that hide others."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
    return module


def test_published_sizes() -> None:
    with torch.device("meta"):
        assert parameter_count(EarlyDFGenerator(width=32)) == 12_240_010
        assert parameter_count(EarlyDFGenerator(width=64)) == 31_480_074
        assert parameter_count(DFGenerator(width=32)) == 9_744_131
        assert parameter_count(DFDiscriminator(width=32)) == 6_619_206 - 3 * DEAD
        assert parameter_count(DFHead(width=32)) == 295_936


@pytest.mark.parametrize("kind", GENERATORS)
@pytest.mark.parametrize("resolution", [64, 256])
def test_images(kind: type[DFGenerator | EarlyDFGenerator], resolution: int) -> None:
    generated = kind(resolution, width=2)(torch.randn(2, 100), torch.randn(2, 256))
    (image,) = generated.images
    assert image.shape == (2, 3, resolution, resolution)
    assert image.abs().max() <= 1
    assert not generated.masks


def test_initial_values() -> None:
    for generator in (EarlyDFGenerator(64, width=2), DFGenerator(64, width=2)):
        for name, parameter in generator.named_parameters():
            if "output.weight" in name or "beta.output" in name or name.endswith("scale"):
                assert not parameter.any(), name
            if "gamma.output.bias" in name:
                assert (parameter == 1).all(), name
    early, later = (
        sum(name.endswith("scale") for name, _ in kind(64, width=2).named_parameters())
        for kind in (EarlyDFGenerator, DFGenerator)
    )
    assert (early, later) == (5, 0)


def test_what_steers_the_blocks() -> None:
    """The first version is steered by the sentence alone, the later one by the noise too."""
    noise, sentence = torch.randn(2, 100), torch.randn(2, 256)
    assert torch.equal(EarlyDFGenerator(64, width=2).condition(noise, sentence), sentence)
    joined = DFGenerator(64, width=2).condition(noise, sentence)
    assert torch.equal(joined, torch.cat([noise, sentence], 1))


@pytest.mark.parametrize("kind", GENERATORS)
def test_every_parameter_of_the_generator_gets_a_gradient(
    kind: type[DFGenerator | EarlyDFGenerator],
) -> None:
    generator = shaken(kind(64, width=2))
    generator(torch.randn(3, 100), torch.randn(3, 256)).images[0].square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in generator.parameters())


def test_every_parameter_of_the_discriminator_gets_a_gradient() -> None:
    pair = PairedDiscriminator(DFDiscriminator(64, width=2), DFHead(width=2))
    shaken(pair)
    logits = pair(torch.randn(3, 3, 64, 64), torch.randn(3, 256))
    assert logits.shape == (3,)
    logits.square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in pair.parameters())


def test_a_shortcut_before_enlargement_is_the_one_after_it() -> None:
    block = shaken(DFBlock(6, 4, 8, 2))
    assert isinstance(block, DFBlock)
    features, condition = torch.randn(2, 6, 4, 4), torch.randn(2, 8)
    large = F.interpolate(features, scale_factor=2, mode="nearest")
    hidden = block.conv1(block.fusion1(large, condition))
    expected = block.shortcut(large) + block.conv2(block.fusion2(hidden, condition))
    torch.testing.assert_close(block(features, condition), expected)


def test_the_first_version_step_by_step() -> None:
    """Against its description, written plainly over the released code's names."""
    generator = shaken(EarlyDFGenerator(64, width=2)).double()
    weights = export_reference("df_gan", "generator", generator)
    noise, sentence = torch.randn(2, 100).double(), torch.randn(2, 256).double()
    generated = generator(noise, sentence).images[0]
    torch.testing.assert_close(generated, plain_early_generator(weights, noise, sentence))


def plain_early_generator(weights: dict[str, Tensor], noise: Tensor, sentence: Tensor) -> Tensor:
    def linear(name: str, value: Tensor) -> Tensor:
        return F.linear(value, weights[f"{name}.weight"], weights[f"{name}.bias"])

    def conv(name: str, value: Tensor, padding: int = 1) -> Tensor:
        return F.conv2d(value, weights[f"{name}.weight"], weights[f"{name}.bias"], padding=padding)

    def bent(name: str, value: Tensor) -> Tensor:
        gamma, beta = (
            linear(f"{name}.fc_{k}.linear2", F.relu(linear(f"{name}.fc_{k}.linear1", sentence)))
            for k in ("gamma", "beta")
        )
        return F.leaky_relu(gamma[:, :, None, None] * value + beta[:, :, None, None], 0.2)

    features = linear("fc", noise).view(2, -1, 4, 4)
    for index in range(5):
        block = f"block{index}"
        if index:
            features = F.interpolate(features, scale_factor=2, mode="nearest")
        hidden = bent(f"{block}.affine1", bent(f"{block}.affine0", features))
        hidden = conv(f"{block}.c1", hidden)
        hidden = bent(f"{block}.affine3", bent(f"{block}.affine2", hidden))
        hidden = conv(f"{block}.c2", hidden)
        learned = f"{block}.c_sc.weight" in weights
        shortcut = conv(f"{block}.c_sc", features, 0) if learned else features
        features = shortcut + weights[f"{block}.gamma"] * hidden
    return conv("conv_img.1", F.leaky_relu(features, 0.2)).tanh()
