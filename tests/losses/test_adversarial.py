"""Hinge losses and the gradient penalty."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from t2i_hpc.losses.adversarial import hinge_fake, hinge_mismatch, hinge_real, mismatched
from t2i_hpc.losses.gradient_penalty import matching_aware_gradient_penalty
from t2i_hpc.models.discriminator import MatchingDiscriminator


def test_hinge_losses() -> None:
    logits = torch.tensor([-2.0, 0.5, 3.0])
    assert float(hinge_real(logits)) == pytest.approx((3 + 0.5 + 0) / 3)
    assert float(hinge_fake(logits)) == pytest.approx((0 + 1.5 + 4) / 3)


def test_mismatched_sentences_are_the_next_images() -> None:
    sentence = torch.arange(4.0)[:, None]
    assert mismatched(sentence).flatten().tolist() == [1, 2, 3, 0]


def test_shift_leaves_out_the_pair_that_wraps_around() -> None:
    logits = torch.tensor([1.0, 2.0, 10.0])
    assert float(hinge_mismatch(logits, "shift")) == pytest.approx(2.5)
    assert float(hinge_mismatch(logits, "roll")) == pytest.approx(16 / 3)


def plain_penalty(
    network: MatchingDiscriminator, image: Tensor, sentence: Tensor, power: float
) -> Tensor:
    """The reference's way: norm of the concatenated gradients, then its power."""
    image, sentence = image.clone().requires_grad_(), sentence.clone().requires_grad_()
    gradients = torch.autograd.grad(
        network(image, sentence).sum(), [image, sentence], create_graph=True
    )
    norm = torch.cat([g.flatten(1) for g in gradients], dim=1).norm(dim=1)
    penalty: Tensor = norm.pow(power).mean()
    return penalty


def test_penalty_and_its_gradient_equal_the_plain_way() -> None:
    torch.manual_seed(0)
    network = MatchingDiscriminator(64, width=2, sentence_width=8).double()
    for block in network.blocks:
        torch.nn.init.constant_(block.get_parameter("scale"), 0.5)
    image = torch.randn(3, 3, 64, 64, dtype=torch.float64)
    sentence = torch.randn(3, 8, dtype=torch.float64)
    parameters = list(network.parameters())
    values, gradients = [], []
    for penalty in (matching_aware_gradient_penalty, plain_penalty):
        value = penalty(network, image, sentence, 6.0)
        values.append(value.detach())
        gradients.append(torch.autograd.grad(value, parameters, allow_unused=True))
    assert torch.allclose(values[0], values[1], rtol=1e-10)
    for ours, plain in zip(*gradients, strict=True):
        assert torch.allclose(
            torch.zeros(()) if ours is None else ours,
            torch.zeros(()) if plain is None else plain,
            rtol=1e-8,
        )


def test_a_vanishing_gradient_is_no_nan() -> None:
    scale = torch.zeros((), requires_grad=True)
    penalty = matching_aware_gradient_penalty(
        lambda x, e: scale * (x.flatten(1).sum(1) + e.sum(1)),
        torch.ones(2, 1, 2, 2),
        torch.ones(2, 3),
    )
    (gradient,) = torch.autograd.grad(penalty, scale)
    assert float(penalty) == 0
    assert float(gradient) == 0
