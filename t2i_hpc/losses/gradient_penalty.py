"""Matching-aware gradient penalty, MA-GP (DF-GAN §3.3, SSA-GAN Eq. 6)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from t2i_hpc.common.double_backward import with_input_gradients
from t2i_hpc.losses.adversarial import at_least_float32


class PairDiscriminator(Protocol):
    """A discriminator of (image, sentence) pairs without batch statistics."""

    def features(self, image: Tensor, /) -> Tensor:
        """Return features of images (B, 3, H, W)."""

    def logits(self, features: Tensor, sentence: Tensor, /) -> Tensor:
        """Return logits (B,) of features with sentences (B, S)."""


class PenalizedPairs(NamedTuple):
    """The penalty, a scalar, and the features and logits (B,) of the pairs it was computed at."""

    penalty: Tensor
    features: Tensor
    logits: Tensor


def matching_aware_gradient_penalty(
    discriminator: PairDiscriminator,
    image: Tensor,
    sentence: Tensor,
    power: float = 6.0,
    norm: str = "concatenated",
) -> PenalizedPairs:
    """Return mean_b n_b^power at real, matching pairs, in float32 at least.

    n_b is the norm of logit b's gradient by image and sentence.

    Args:
        discriminator: its logit b depends on row b alone.
        image, sentence: real pairs (B, 3, H, W) and (B, S); their own graph is not entered.
        power: p of the norm, 6 in the papers.
        norm: ``concatenated`` is √(‖∇x‖² + ‖∇e‖²) (released code); ``sum`` is ‖∇x‖ + ‖∇e‖
            (SSA-GAN Eq. 6).
    """
    # Outside autocast: a sixth power overflows half precision.
    with torch.autocast(image.device.type, enabled=False):
        inputs = [at_least_float32(value.detach()) for value in (image, sentence)]

        def outputs(image: Tensor, sentence: Tensor) -> tuple[Tensor, Tensor]:
            features = discriminator.features(image)
            return discriminator.logits(features, sentence), features

        gradients, logits, features = with_input_gradients(outputs, inputs)  # ∂D/∂x and ∂D/∂e
        penalty = _norm_to_the(power, [g.flatten(1) for g in gradients], norm).mean()
        return PenalizedPairs(penalty, features, logits)


def _norm_to_the(power: float, rows: Sequence[Tensor], norm: str) -> Tensor:
    """Return the power (B,) of the joint norm of gradients (B, …)."""
    if norm == "sum":
        # torch's norm has the gradient 0 at 0.
        return torch.stack([row.norm(dim=1) for row in rows]).sum(0).pow(power)
    # Without the root, whose gradient is NaN where a gradient vanishes.
    return torch.stack([row.square().sum(1) for row in rows]).sum(0).pow(power / 2)
