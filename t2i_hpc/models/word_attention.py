"""Attention of image positions over the words of a caption, as stages of a generator use it.

A word that is not there must get no attention. The released code of AttnGAN and DM-GAN tiles
the padding masks in the wrong order, so that most positions use another sample's mask; weights
trained with it expect it, so that order is offered too.
"""

from __future__ import annotations

import torch
from torch import Tensor

from t2i_hpc.common.collectives import gather_rows, rank


def hidden_words(padding_mask: Tensor, positions: int, reference: bool, training: bool) -> Tensor:
    """Return where words are hidden, from bool (B, T): (B, 1, T), or (B, positions, T) as released.

    The released code numbers the rows (sample b, position q) as b·positions + q, and gives row n
    the mask of sample n modulo the batch size. While training that is the global batch, so the
    result does not depend on the number of ranks.

    Args:
        padding_mask: True where a caption has no word.
        positions: places of the image that attend.
        reference: whether to do as the released code does.
        training: whether all ranks take part.
    """
    if not reference:
        return padding_mask[:, None]
    everyone = gather_rows(padding_mask.float()) > 0 if training else padding_mask
    batch = len(padding_mask)
    first = rank() * batch * positions if training else 0
    rows = torch.arange(first, first + batch * positions, device=padding_mask.device)
    return everyone[rows % len(everyone)].view(batch, positions, -1)


def read_words(
    features: Tensor, keys: Tensor, values: Tensor, hidden: Tensor
) -> tuple[Tensor, Tensor]:
    """Let every position of an image read from the words.

    Args:
        features: (B, C, h, w), what positions ask for.
        keys: (B, C, T), what words answer to.
        values: (B, V, T), what words say.
        hidden: bool (B, 1 or h·w, T), words that a position must not see.

    Returns:
        What was read (B, V, h, w), and the attention (B, T, h, w), which sums to 1 over words.
    """
    size = features.shape[2:]
    scores = features.flatten(2).transpose(1, 2) @ keys
    attention = scores.masked_fill(hidden, float("-inf")).softmax(2).transpose(1, 2)
    read = values @ attention.to(values.dtype)
    return read.unflatten(2, size), attention.unflatten(2, size)
