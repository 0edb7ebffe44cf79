"""Hinge losses of a discriminator of (image, sentence) pairs (SSA-GAN Eqs. 6 and 7).

Means are taken over the global batch: a rank's value is its share times the number of ranks,
so that the mean over ranks is the single-process value. They are computed in float32 at least:
logits in half precision would be rounded to three digits once more.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from t2i_hpc.common.collectives import gather_rows, rank, world_size
from t2i_hpc.losses.precision import at_least_float32


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
    """Return the mean hinge of mismatched pairs (B,), in global order.

    Args:
        logits: of this rank's images with the sentences of :func:`mismatched`.
        mode: ``roll`` counts every pair; ``shift`` leaves out the pair that wraps around (the
            released code compares images 0…N−2 with sentences 1…N−1).
    """
    losses = F.relu(1.0 + at_least_float32(logits))
    if mode == "roll":
        return losses.mean()
    pairs = len(logits) * world_size() - 1
    kept = losses[:-1] if rank() == world_size() - 1 else losses
    return kept.sum() * world_size() / pairs
