"""Binary cross-entropies of a discriminator's logits (AttnGAN Eqs. 4 to 6).

The released code takes logarithms of sigmoids; from logits the same numbers come without
overflow. Means are over the global batch, as in :mod:`t2i_hpc.losses.adversarial`.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from t2i_hpc.common.collectives import rank, world_size
from t2i_hpc.losses.precision import at_least_float32


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
