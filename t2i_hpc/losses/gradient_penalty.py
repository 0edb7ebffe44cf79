"""Gradient penalties: matching-aware (DF-GAN §3.3, SSA-GAN Eq. 6) and zero-centered (R1, R2)."""

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
    *,
    precision: str | None = None,
) -> PenalizedPairs:
    """Return mean_b n_b^power at real, matching pairs, in float32 at least.

    n_b is the norm of logit b's gradient by image and sentence.

    Args:
        discriminator: its logit b depends on row b alone.
        image, sentence: real pairs (B, 3, H, W) and (B, S); their own graph is not entered.
        power: p of the norm, 6 in the papers.
        norm: ``concatenated`` is √(‖∇x‖² + ‖∇e‖²) (released code); ``sum`` is ‖∇x‖ + ‖∇e‖
            (SSA-GAN Eq. 6).
        precision: of the network's products, as :func:`penalty_autocast` takes it.
    """
    device = image.device.type
    with penalty_autocast(device, precision):
        inputs = [at_least_float32(value.detach()) for value in (image, sentence)]

        def outputs(image: Tensor, sentence: Tensor) -> tuple[Tensor, Tensor]:
            features = discriminator.features(image)
            return discriminator.logits(features, sentence), features

        gradients, logits, features = with_input_gradients(outputs, inputs)  # ∂D/∂x and ∂D/∂e
    # Outside autocast: a sixth power overflows half precision. Gradients are float32 here, since
    # the inputs are.
    with torch.autocast(device, enabled=False):
        penalty = _norm_to_the(power, [g.flatten(1) for g in gradients], norm).mean()
    return PenalizedPairs(penalty, features, logits)


def zero_centered_penalty(
    discriminator: PairDiscriminator,
    image: Tensor,
    sentence: Tensor,
    *,
    precision: str | None = None,
) -> PenalizedPairs:
    """Return mean_b ‖∇ₓ D(x_b, e_b)‖², in float32 at least.

    At real images it is R1, at generated ones R2 (Mescheder et al. 2018; R3GAN). Their γ/2 is the
    caller's weight.

    Args:
        discriminator: its logits b depend on row b alone; of several an image has their sum's
            gradient.
        image, sentence: pairs (B, 3, H, W) and (B, S); their own graph is not entered.
        precision: of the network's products, as :func:`penalty_autocast` takes it.
    """
    device, condition = image.device.type, sentence.detach()
    with penalty_autocast(device, precision):

        def outputs(image: Tensor) -> tuple[Tensor, Tensor]:
            features = discriminator.features(image)
            return discriminator.logits(features, condition), features

        found = with_input_gradients(outputs, [at_least_float32(image.detach())])
        (gradient,), logits, features = found
    with torch.autocast(device, enabled=False):
        penalty = gradient.flatten(1).square().sum(1).mean()
    return PenalizedPairs(penalty, features, logits)


def penalty_autocast(device: str, precision: str | None) -> torch.autocast:
    """Return the context in which a penalized network runs.

    Args:
        device: its type.
        precision: ``bf16``; ``fp32`` or ``tf32``, without autocast (which of both, the phase
            says); None: the autocast around it, but none in float16, whose range a gradient of a
            gradient leaves.
    """
    kind = torch.get_autocast_dtype(device)
    enabled = torch.is_autocast_enabled(device) and kind != torch.float16
    if precision is not None:
        enabled, kind = precision == "bf16", torch.bfloat16
    return torch.autocast(device, kind if enabled else None, enabled=enabled, cache_enabled=False)


def _norm_to_the(power: float, rows: Sequence[Tensor], norm: str) -> Tensor:
    """Return the power (B,) of the joint norm of gradients (B, …)."""
    if norm == "sum":
        # torch's norm has the gradient 0 at 0.
        return torch.stack([row.norm(dim=1) for row in rows]).sum(0).pow(power)
    # Without the root, whose gradient is NaN where a gradient vanishes.
    return torch.stack([row.square().sum(1) for row in rows]).sum(0).pow(power / 2)
