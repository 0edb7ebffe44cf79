"""Text encoders: AttnGAN's bidirectional LSTM over word embeddings, and BERT.

Both give word and sentence features of the same shapes. BERT puts its two special tokens around
a caption itself and returns one feature for each token between them, so callers need not know
which encoder it is. It needs the extra ``transformers``, which is imported where a BERT is built.
"""

from __future__ import annotations

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from t2i_hpc.common.terminal import quiet
from t2i_hpc.common.transfer import to_device
from t2i_hpc.models.global_batch import Dropout, ExactDropout

if TYPE_CHECKING:
    from transformers import BertModel

_BF16_KERNEL = torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
_WITHOUT_KERNEL = {torch.float16} if _BF16_KERNEL else {torch.float16, torch.bfloat16}
_LAYER = re.compile(r"(.*?\blayers?)\.\d+\.")


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
        max_tokens: most tokens of a caption, None for any number.
    """

    width: int
    max_tokens: int | None = None

    @abstractmethod
    def forward(self, tokens: Tensor, lengths: Tensor) -> TextFeatures:
        """Encode tokens int64 (B, T) of `lengths` int64 (B,), 1 ≤ length ≤ T, in any order.

        Lengths on the CPU cost no wait for the device.
        """


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
        # Sorted here, where the order lies on the CPU: torch's packing asks the device for it.
        sizes, order = torch.sort(lengths.cpu(), descending=True)
        back = to_device(order.argsort(), tokens.device)
        longest_first = embedded.index_select(0, to_device(order, tokens.device))
        packed = pack_padded_sequence(longest_first, sizes, batch_first=True)
        with _arithmetic(embedded):
            outputs, (last, _) = self.lstm(packed)
        words, _ = pad_packed_sequence(outputs, batch_first=True, total_length=tokens.shape[1])
        sentence = last.index_select(1, back).transpose(0, 1).flatten(1)
        return TextFeatures(words.index_select(0, back).transpose(1, 2), sentence)


def _arithmetic(values: Tensor) -> AbstractContextManager[object]:
    """Return what an LSTM runs in: on a CPU float32 instead of what oneDNN has no kernel for.

    torch (2.14.1) asks for one all the same, and ends in an error, where all captions of a batch
    are of one length: in float16 on any CPU, in bfloat16 on one without AVX-512.
    """
    if values.is_cpu and torch.get_autocast_dtype("cpu") in _WITHOUT_KERNEL:
        return torch.autocast("cpu", enabled=False)
    return nullcontext()


class BERTTextEncoder(TextEncoder):
    """Words and sentences of length `width` from a BERT of any width.

    Args:
        bert: without its pooler, whose parameters nothing would reach.
        width: length of a word's and a sentence's vector.
        first, last: numbers of the tokens around a caption ([CLS] and [SEP]).
        pooling: ``mean`` makes a sentence of all of a caption's tokens, as sentence transformers
            do; ``first`` takes the first one's feature, as BERT's own classifier does.
    """

    def __init__(
        self, bert: BertModel, width: int, *, first: int, last: int, pooling: str = "mean"
    ) -> None:
        super().__init__()
        self.bert, self.width, self.pooling = bert, width, pooling
        self.first, self.last = first, last
        self.max_tokens = bert.config.max_position_embeddings - 2
        hidden = bert.config.hidden_size
        self.projection = nn.Identity() if hidden == width else nn.Linear(hidden, width)

    def forward(self, tokens: Tensor, lengths: Tensor) -> TextFeatures:
        """Encode tokens int64 (B, T) of `lengths` int64 (B,), 1 ≤ length ≤ T."""
        lengths = to_device(lengths, tokens.device)
        framed, inside = self._frame(tokens, lengths)
        with ExactDropout() if self.training else nullcontext():
            found = self.bert(input_ids=framed, attention_mask=inside.long())
        hidden = found.last_hidden_state
        projected = self.projection(hidden) * inside[:, :, None]
        place = torch.arange(1, tokens.shape[1] + 1, device=tokens.device)
        is_word = place <= lengths[:, None]
        words = projected[:, 1:-1] * is_word[:, :, None]
        return TextFeatures(words.transpose(1, 2), self._sentence(projected, inside))

    def _frame(self, tokens: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Return tokens (B, T + 2) with the special ones, and where they are no padding."""
        place = torch.arange(tokens.shape[1] + 2, device=tokens.device)[None, :]
        framed = nn.functional.pad(tokens, (1, 1))
        framed = torch.where(place == 0, self.first, framed)
        framed = torch.where(place == lengths[:, None] + 1, self.last, framed)
        inside = place <= lengths[:, None] + 1
        return framed.masked_fill(~inside, 0), inside

    def _sentence(self, projected: Tensor, inside: Tensor) -> Tensor:
        if self.pooling == "first":
            return projected[:, 0]
        return projected.sum(1) / inside.sum(1, keepdim=True)


def new_bert(
    vocabulary_size: int, width: int, *, layers: int, heads: int, feed_forward: int, dropout: float
) -> tuple[BertModel, int, int]:
    """Return a BERT without training, and the numbers of the two tokens it has beside the words.

    Args:
        vocabulary_size: number of word ids, 0 being padding.
        width: of its features; a multiple of `heads`.
        layers, heads, feed_forward, dropout: of the transformer.
    """
    from transformers import BertConfig, BertModel

    config = BertConfig(
        vocab_size=vocabulary_size + 2,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=feed_forward,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
    )
    return BertModel(config, add_pooling_layer=False), vocabulary_size, vocabulary_size + 1


def pretrained_bert(folder: Path) -> BertModel:
    """Read a BERT from a folder with config.json and model.safetensors; nothing is downloaded.

    Its weights are float32, in whatever precision they were saved: Adam updates them.

    Raises:
        OSError, ValueError: a file is missing or damaged, or the folder holds another network.
    """
    from transformers import BertModel

    described = json.loads((folder / "config.json").read_bytes())
    kind = described.get("model_type") if isinstance(described, dict) else None
    if kind != "bert":
        raise ValueError(
            f"config.json beside it describes a network of the kind {kind!r}, not bert"
        )
    reader: Any = BertModel  # the library's types do not know of the loading info
    with quiet():
        bert, found = reader.from_pretrained(
            folder,
            local_files_only=True,
            use_safetensors=True,
            add_pooling_layer=False,
            output_loading_info=True,
        )
    missing = sorted(found["missing_keys"])  # they would be random numbers
    left_over = layers_beyond(bert.state_dict(), found["unexpected_keys"])
    if missing or left_over:
        what = f"lacks {missing[0]}" if missing else f"holds {left_over[0]} beyond it"
        raise ValueError(
            f"it does not hold the network that config.json beside it describes (it {what}): copy "
            "both files again from the same place"
        )
    loaded: BertModel = bert.float()
    return loaded


def untrained_bert(folder: Path) -> BertModel:
    """Return the BERT that a folder's config.json describes, with random weights.

    Raises:
        OSError, ValueError: the file is missing or damaged.
    """
    from transformers import BertConfig, BertModel

    with quiet():
        config = BertConfig.from_pretrained(folder, local_files_only=True)
        return BertModel(config, add_pooling_layer=False)


def layers_beyond(own: Iterable[str], unexpected: Iterable[str]) -> list[str]:
    """Return the names in a file that continue one of the network's own lists of layers.

    transformers reads the first layers of a deeper network without a word; its features would be
    those of no network at all. Other names in the file (heads, the other half of CLIP) are none.

    Args:
        own: names of the network's tensors.
        unexpected: names in the file that the network has no place for.
    """
    lists = {_list_of(name) for name in own} - {""}
    return sorted(name for name in unexpected if _continues(_list_of(name), lists))


def _list_of(name: str) -> str:
    found = _LAYER.match(name)
    return found[1] if found else ""


def _continues(found: str, lists: Iterable[str]) -> bool:
    """Whether a list of layers is one of the network's, with or without the prefix of its model."""
    return bool(found) and any(
        found == own or found.endswith(f".{own}") or own.endswith(f".{found}") for own in lists
    )
