"""Hinge losses and the gradient penalty."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import pytest
import torch
from torch import Tensor

from t2i_hpc.losses.adversarial import (
    hinge_fake,
    hinge_generator,
    hinge_mismatch,
    hinge_real,
    mismatched,
)
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
    network: MatchingDiscriminator, image: Tensor, sentence: Tensor, power: float, norm: str
) -> Tensor:
    """Norm of the concatenated gradients (released code) or sum of norms, then the power."""
    image, sentence = image.clone().requires_grad_(), sentence.clone().requires_grad_()
    gradients = torch.autograd.grad(
        network(image, sentence).sum(), [image, sentence], create_graph=True
    )
    flat = [gradient.flatten(1) for gradient in gradients]
    if norm == "concatenated":
        flat = [torch.cat(flat, dim=1)]
    lengths = [gradient.square().sum(1).sqrt() for gradient in flat]
    penalty: Tensor = torch.stack(lengths).sum(0).pow(power).mean()
    return penalty


@pytest.mark.parametrize("norm", ["concatenated", "sum"])
def test_penalty_and_its_gradient_equal_the_plain_way(norm: str) -> None:
    torch.manual_seed(0)
    network = MatchingDiscriminator(64, width=2, sentence_width=8).double()
    for block in network.blocks:
        torch.nn.init.constant_(block.get_parameter("scale"), 0.5)
    image = torch.randn(3, 3, 64, 64, dtype=torch.float64)
    sentence = torch.randn(3, 8, dtype=torch.float64)
    parameters = list(network.parameters())
    values, gradients = [], []
    for value in (
        matching_aware_gradient_penalty(network, image, sentence, 6.0, norm).penalty,
        plain_penalty(network, image, sentence, 6.0, norm),
    ):
        values.append(value.detach())
        gradients.append(torch.autograd.grad(value, parameters, allow_unused=True))
    assert torch.allclose(values[0], values[1], rtol=1e-10)
    for ours, plain in zip(*gradients, strict=True):
        assert torch.allclose(
            torch.zeros(()) if ours is None else ours,
            torch.zeros(()) if plain is None else plain,
            rtol=1e-8,
        )


@dataclass(frozen=True)
class Linear:
    """A discriminator without features of its own."""

    logits: Callable[[Tensor, Tensor], Tensor]

    def features(self, image: Tensor) -> Tensor:
        return image


def test_the_norms_differ_by_the_mixed_term() -> None:
    image, sentence = torch.ones(1, 1, 2, 2), torch.ones(1, 1)
    for norm, expected in (("concatenated", 4.0 + 9.0), ("sum", (2.0 + 3.0) ** 2)):
        network = Linear(lambda x, e: x.flatten(1).sum(1) + 3 * e.sum(1))
        penalty = matching_aware_gradient_penalty(network, image, sentence, 2.0, norm).penalty
        assert float(penalty) == pytest.approx(expected)


@pytest.mark.parametrize("norm", ["concatenated", "sum"])
def test_a_vanishing_gradient_is_no_nan(norm: str) -> None:
    scale = torch.zeros((), requires_grad=True)
    network = Linear(lambda x, e: scale * (x.flatten(1).sum(1) + e.sum(1)))
    image, sentence = torch.ones(2, 1, 2, 2), torch.ones(2, 3)
    penalty = matching_aware_gradient_penalty(network, image, sentence, norm=norm).penalty
    (gradient,) = torch.autograd.grad(penalty, scale)
    assert float(penalty.detach()) == 0
    assert float(gradient) == 0


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_means_of_half_precision_are_float32(half: torch.dtype) -> None:
    logits = torch.linspace(-1, 1, 1001).to(half) + 0.25
    wide = logits.float()
    for loss in (hinge_real, hinge_fake, hinge_generator, partial(hinge_mismatch, mode="shift")):
        assert loss(logits).dtype == torch.float32
        assert torch.equal(loss(logits), loss(wide))
    assert loss(logits.double()).dtype == torch.float64
