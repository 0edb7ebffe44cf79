"""Adversarial losses: hinge (SSA-GAN Eqs. 6 and 7), relativistic, and binary cross-entropy.

The relativistic ones are R3GAN's (Huang et al. 2024, §2), the cross-entropies AttnGAN's
(Eqs. 4 to 6).

And the divergence of the conditioning augmentation's Gaussian. Means are taken over the global
batch: a rank's value is its part of the sum times the number of ranks, so that the mean over ranks
is the single-process value. All are computed in float32 at least, whatever the networks run in:
logits in half precision would be rounded to three digits once more. The released code of AttnGAN
takes logarithms of sigmoids; from logits the same numbers come without overflow.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from t2i_hpc.common.collectives import gather_rows, rank, world_size


def at_least_float32(value: Tensor) -> Tensor:
    """Return half precision as float32; float32 and float64 stay as they are."""
    return value.to(torch.promote_types(value.dtype, torch.float32))


def hinge_real(logits: Tensor) -> Tensor:
    """Return mean(max(0, 1 − l)) of logits (B,) that should be high."""
    return F.relu(1.0 - at_least_float32(logits)).mean()


def hinge_fake(logits: Tensor) -> Tensor:
    """Return mean(max(0, 1 + l)) of logits (B,) that should be low."""
    return F.relu(1.0 + at_least_float32(logits)).mean()


def hinge_generator(logits: Tensor) -> Tensor:
    """Return −mean(l) of logits (B,) of fake images: what a generator lowers."""
    return -at_least_float32(logits).mean()


def mismatched(sentence: Tensor) -> Tensor:
    """Return for each image of this rank the next image's sentence, cyclic over all ranks."""
    everyone = gather_rows(sentence)
    start = rank() * len(sentence)
    return everyone.roll(-1, 0)[start : start + len(sentence)]


def hinge_mismatch(logits: Tensor, mode: str) -> Tensor:
    """Return the mean hinge of mismatched pairs (B, …), in global order.

    Args:
        logits: of this rank's images with the sentences of :func:`mismatched`.
        mode: of :func:`mean_of_mismatched`.
    """
    return mean_of_mismatched(F.relu(1.0 + at_least_float32(logits)), mode)


def mean_of_mismatched(losses: Tensor, mode: str) -> Tensor:
    """Return the mean of losses (B, …) of mismatched pairs, in global order.

    Args:
        losses: of this rank's images with the sentences of :func:`mismatched`.
        mode: ``roll`` counts every pair; ``shift`` leaves out the pair that wraps around (the
            released code compares images 0…N−2 with sentences 1…N−1).
    """
    if mode == "roll":
        return losses.mean()
    pairs = (len(losses) * world_size() - 1) * losses[0].numel()
    kept = losses[:-1] if rank() == world_size() - 1 else losses
    return kept.sum() * world_size() / pairs


def relative(higher: Tensor, lower: Tensor) -> Tensor:
    """Return softplus(l − h) for logits (B, …) of pairs of which the first should be higher."""
    return F.softplus(at_least_float32(lower) - at_least_float32(higher))


def entropy_real(logits: Tensor) -> Tensor:
    """Return mean(−log σ(l)) of logits (B,) that should be high."""
    return F.softplus(-at_least_float32(logits)).mean()


def entropy_fake(logits: Tensor) -> Tensor:
    """Return mean(−log(1 − σ(l))) of logits (B,) that should be low."""
    return F.softplus(at_least_float32(logits)).mean()


def wrong_pairs(count: int, mode: str) -> int:
    """Return how many of this rank's `count` images have a wrong sentence.

    Args:
        count: images of this rank.
        mode: ``roll``: all of them; ``shift``: all but the last of the last rank, as in the
            released code, which compares images 0…N−2 with sentences 1…N−1.
    """
    return count - (mode == "shift" and rank() == world_size() - 1)


def entropy_mismatch(logits: Tensor, batch: int, mode: str) -> Tensor:
    """Return the mean of −log(1 − σ(l)) over all ranks' mismatched pairs.

    Args:
        logits: (:func:`wrong_pairs`,) of this rank.
        batch: images of every rank.
        mode: of :func:`wrong_pairs`.
    """
    pairs = batch * world_size() - (mode == "shift")
    return F.softplus(at_least_float32(logits)).sum() * world_size() / max(1, pairs)


def gaussian_divergence(mean: Tensor, log_variance: Tensor) -> Tensor:
    """Return KL(N(μ, σ²) ‖ N(0, 1)) as a mean over batch and dimensions.

    The released AttnGAN averages over all elements instead of summing over dimensions
    (its weight of 1 belongs to that form); computed in float32 or wider.

    Args:
        mean: μ, (B, C).
        log_variance: log σ², (B, C).
    """
    wide = torch.promote_types(mean.dtype, torch.float32)
    mean, log_variance = mean.to(wide), log_variance.to(wide)
    return -0.5 * (1 + log_variance - mean.square() - log_variance.exp()).mean()
