"""Text encoders: what they give, and AttnGAN's, a bidirectional LSTM over word embeddings."""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from t2i_hpc.models.dropout import Dropout


class TextFeatures(NamedTuple):
    """What a text encoder makes of captions.

    Attributes:
        words: (B, D, T), zero where a caption has no word.
        sentence: (B, D).
    """

    words: Tensor
    sentence: Tensor


class TextEncoder(nn.Module, ABC):
    """Turns word ids into features.

    Attributes:
        width: D, length of a word's and a sentence's vector.
    """

    width: int

    @abstractmethod
    def forward(self, tokens: Tensor, lengths: Tensor) -> TextFeatures:
        """Encode tokens int64 (B, T) of `lengths` int64 (B,), 1 ≤ length ≤ T, in any order."""


class LSTMTextEncoder(TextEncoder):
    """Words and sentences of length `width` (half a direction).

    Args:
        vocabulary_size: number of word ids, 0 being padding.
        width: length of a word's and a sentence's vector; even.
        embedding_width: length of a word embedding.
        dropout: of embeddings, while training.
    """

    def __init__(
        self,
        vocabulary_size: int,
        width: int = 256,
        embedding_width: int = 300,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        self.width = width
        self.embedding = nn.Embedding(vocabulary_size, embedding_width)
        self.dropout = Dropout(dropout)
        self.lstm = nn.LSTM(embedding_width, width // 2, batch_first=True, bidirectional=True)
        nn.init.uniform_(self.embedding.weight, -0.1, 0.1)

    def forward(self, tokens: Tensor, lengths: Tensor) -> TextFeatures:
        """Encode tokens int64 (B, T) of `lengths` int64 (B,), 1 ≤ length ≤ T, in any order."""
        embedded = self.dropout(self.embedding(tokens))
        # Lengths must lie on the CPU; captions need no order: torch sorts and restores.
        packed = pack_padded_sequence(
            embedded, lengths.cpu(), batch_first=True, enforce_sorted=False
        )
        with _arithmetic(embedded):
            outputs, (last, _) = self.lstm(packed)
        words, _ = pad_packed_sequence(outputs, batch_first=True, total_length=tokens.shape[1])
        sentence = last.transpose(0, 1).flatten(1)
        return TextFeatures(words.transpose(1, 2), sentence)


def _arithmetic(values: Tensor) -> AbstractContextManager[object]:
    """Return what an LSTM runs in: on a CPU float32 instead of float16.

    torch (2.14.1) ends in an error there where all captions of a batch are of one length.
    """
    if values.is_cpu and torch.get_autocast_dtype("cpu") == torch.float16:
        return torch.autocast("cpu", enabled=False)
    return nullcontext()
