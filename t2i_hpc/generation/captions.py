"""Captions as the networks read them: token ids and lengths."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from t2i_hpc.common.seeds import generator
from t2i_hpc.data.captions import Vocabulary, encode_caption, pad


def encode_captions(
    captions: Sequence[str], vocabulary: Vocabulary, words: int, seed: int
) -> tuple[Tensor, Tensor]:
    """Return tokens int64 (B, words) and lengths int64 (B,).

    A caption that is longer is cut to a random subset of its words in order, by the seed and
    its text alone, so that a caption means the same wherever it stands.
    """
    tokens, lengths = pad(
        [
            encode_caption(caption, vocabulary, words, generator(seed, f"words of {caption}", 0))
            for caption in captions
        ],
        words,
    )
    return torch.from_numpy(tokens), torch.from_numpy(lengths)


def spelt(tokens: Tensor, lengths: Tensor, vocabulary: Vocabulary) -> list[list[str]]:
    """Return the words of each row of tokens (B, T), of which the first `lengths` (B,) count."""
    rows = zip(tokens.tolist(), lengths.tolist(), strict=True)
    return [[vocabulary.words[token] for token in row[:length]] for row, length in rows]
