"""Matching-aware gradient penalty (DF-GAN, SSA-GAN Eq. 6)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from t2i_hpc.losses.adversarial import at_least_float32


def matching_aware_gradient_penalty(
    judge: Callable[[Tensor, Tensor], Tensor],
    image: Tensor,
    sentence: Tensor,
    power: float = 6.0,
    norm: str = "concatenated",
) -> Tensor:
    """Return the mean power of the gradient's norm at real, matching pairs, in float32.

    Args:
        judge: logits (B,) of images (B, 3, H, W) with sentences (B, S), without batch statistics.
        image, sentence: real pairs; their own graph is not entered.
        power: p of the norm, 6 in the papers.
        norm: see :func:`gradient_penalty`.
    """
    with torch.autocast(image.device.type, enabled=False):
        inputs = penalty_inputs(image, sentence)
        return gradient_penalty(judge(*inputs), inputs, power, norm)


def penalty_inputs(*values: Tensor) -> tuple[Tensor, ...]:
    """Return copies in float32 at least, to compute logits from and to differentiate by.

    They are views of leaves: hooks on the inputs of modules, as of torch's FLOP counter, refuse
    to see a leaf differentiated.
    """
    leaves = [at_least_float32(value.detach()).requires_grad_() for value in values]
    return tuple(leaf.view_as(leaf) for leaf in leaves)


def gradient_penalty(
    logits: Tensor, inputs: Sequence[Tensor], power: float, norm: str = "concatenated"
) -> Tensor:
    """Return mean_b n_b^power, n_b being the norm of logit b's gradient by image and sentence.

    Outside autocast: a sixth power overflows half precision.

    Args:
        logits: (B,), computed from `inputs`; logit b depends on row b alone.
        inputs: image and sentence of :func:`penalty_inputs`.
        power: p of the norm.
        norm: ``concatenated`` is √(‖∇x‖² + ‖∇e‖²) (released code), written without the root,
            whose gradient is not a number where a gradient vanishes; ``sum`` is ‖∇x‖ + ‖∇e‖
            (SSA-GAN Eq. 6).
    """
    gradients = torch.autograd.grad(logits.sum(), inputs, create_graph=True)
    rows = [gradient.flatten(1) for gradient in gradients]
    if norm == "sum":
        # torch's norm has the gradient 0 at 0.
        return torch.stack([row.norm(dim=1) for row in rows]).sum(0).pow(power).mean()
    return torch.stack([row.square().sum(1) for row in rows]).sum(0).pow(power / 2).mean()
