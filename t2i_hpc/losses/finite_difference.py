"""Finite-difference penalty: how steep a discriminator is, without a second derivative.

As in Seaweed-APT (Lin et al. 2025, Eq. 4) and Adversarial Flow Models (Lin et al. 2025): for
normal z the mean of ((D(x + εz) - D(x)) / ε)² approaches ‖∇D(x)‖² as ε falls. One more forward of
a batch takes the place of a backward that is differentiated again.
"""

from __future__ import annotations

import torch
from torch import Tensor

from t2i_hpc.common.seeds import keyed_normal
from t2i_hpc.losses.adversarial import at_least_float32
from t2i_hpc.losses.gradient_penalty import PairDiscriminator, PenalizedPairs, penalty_autocast


def finite_difference_penalty(
    discriminator: PairDiscriminator,
    image: Tensor,
    sentence: Tensor,
    noise: Tensor,
    *,
    epsilon: float = 0.01,
    precision: str | None = None,
) -> PenalizedPairs:
    """Return mean_b ((D(x_b + ε z_b, e_b) - D(x_b, e_b)) / ε)², in float32 at least.

    Args:
        discriminator: its logit b depends on row b alone.
        image, sentence: real pairs (B, 3, H, W) and (B, S); their own graph is not entered.
        noise: (B, Z), each sample's own, the key that z is drawn by: any number of ranks or
            micro-batches draws the same z for the same sample.
        epsilon: ε, the length of the step.
        precision: of the network's products, as :func:`penalty_autocast` takes it.
    """
    image, sentence = image.detach(), sentence.detach()
    moved = torch.add(image, keyed_normal(noise, image.shape[1:]).to(image.dtype), alpha=epsilon)
    with penalty_autocast(image.device.type, precision):
        features, moved_features = discriminator.features(torch.cat([image, moved])).chunk(2)
        logits = discriminator.logits(features, sentence)
        moved_logits = discriminator.logits(moved_features, sentence)
    slope = (at_least_float32(moved_logits) - at_least_float32(logits)) / epsilon
    return PenalizedPairs(slope.square().mean(), features, logits)
