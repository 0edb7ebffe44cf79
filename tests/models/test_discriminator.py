"""The matching discriminator: sizes, the published parameter count, no dead parameters."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from t2i_hpc.losses.gradient_penalty import matching_aware_gradient_penalty
from t2i_hpc.models.discriminator import DownBlock, MatchingDiscriminator, average_pool, leaky_relu
from tests.support.networks import parameter_count


def test_the_published_discriminator_has_its_size_without_dead_shortcuts() -> None:
    assert parameter_count(MatchingDiscriminator()) == 78_280_326
    assert parameter_count(MatchingDiscriminator()) == 80_379_526 - 2 * 1_049_600


@pytest.mark.parametrize("resolution", [64, 128, 256])
def test_logits_and_features(resolution: int) -> None:
    network = MatchingDiscriminator(resolution, width=2)
    image, sentence = torch.randn(3, 3, resolution, resolution), torch.randn(3, 256)
    features = network.features(image)
    assert features.shape == (3, 32, 4, 4)
    assert torch.equal(network(image, sentence), network.logits(features, sentence))
    assert network(image, sentence).shape == (3,)


def test_every_parameter_gets_a_gradient() -> None:
    network = MatchingDiscriminator(64, width=2)
    for block in network.blocks:
        torch.nn.init.ones_(block.get_parameter("scale"))
    network(torch.randn(2, 3, 64, 64), torch.randn(2, 256)).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())


def test_block_equals_the_plain_order_of_operations() -> None:
    block = DownBlock(4, 6)
    torch.nn.init.constant_(block.scale, 0.7)
    x = torch.randn(2, 4, 8, 8)
    hidden = F.leaky_relu(block.conv2(F.leaky_relu(block.conv1(x), 0.2)), 0.2)
    expected = F.avg_pool2d(block.shortcut(x), 2) + block.scale * hidden
    assert torch.allclose(block(x), expected, atol=1e-5)


def test_piecewise_linear_functions_equal_torchs_to_the_second_derivative() -> None:
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    assert torch.equal(leaky_relu(x), F.leaky_relu(x, 0.2))
    torch.testing.assert_close(average_pool(x), F.avg_pool2d(x, 2))
    assert torch.autograd.gradcheck(leaky_relu, (x,))
    assert torch.autograd.gradcheck(average_pool, (x,))
    assert torch.autograd.gradgradcheck(leaky_relu, (x,))
    assert torch.autograd.gradgradcheck(average_pool, (x,))


def test_their_double_backward_leaves_the_forward_graph_alone() -> None:
    x = torch.randn(2, 3, 4, 4, requires_grad=True)
    weight = torch.randn(2, 3, 2, 2, requires_grad=True)
    (gradient,) = torch.autograd.grad(
        (average_pool(leaky_relu(x)) * weight).sum(), x, create_graph=True
    )
    reached = torch.autograd.grad(gradient.sum(), [weight, x], allow_unused=True)
    assert reached[0] is not None
    assert reached[1] is None


def test_the_penalty_reaches_no_more_than_enters_it() -> None:
    """Gradients of None, not of zeros: nothing was pushed through the forward graph."""
    network = MatchingDiscriminator(64, width=2)
    for block in network.blocks:
        torch.nn.init.ones_(block.get_parameter("scale"))
    image, sentence = torch.randn(2, 3, 64, 64), torch.randn(2, 256)
    matching_aware_gradient_penalty(network, image, sentence).penalty.backward()
    unreached = {name for name, p in network.named_parameters() if p.grad is None}
    assert unreached == {"from_rgb.bias", *(f"blocks.{i}.shortcut.bias" for i in range(4))}
