"""A pretrained text encoder's own tokenisation, in the place of the shards' vocabulary.

Captions become word pieces by the encoder's ``tokenizer.json``, without its special tokens: the
encoder puts those around a caption itself, so tokens, lengths and padding mean what they mean for
words, and every piece lines up with one feature of the encoder.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from t2i_hpc.common.errors import ConfigurationError, DataError
from t2i_hpc.common.files import sha256_of_json
from t2i_hpc.data.captions import PADDING, Vocabulary

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_EXTRA = "pip install 't2i-hpc[transformers]'"


class WordPieces(Vocabulary):
    """Pieces of words and their numbers, as a tokeniser that was trained elsewhere has them."""

    def __init__(self, tokeniser: Tokenizer, content: dict[str, Any]) -> None:
        numbers = tokeniser.get_vocab()
        words = [""] * (max(numbers.values()) + 1)
        for word, number in numbers.items():
            words[number] = word
        super().__init__(words)
        self._tokeniser = tokeniser
        # Padding and truncation are ours; the rest (normalizer, merges, pieces) makes the tokens.
        self._rules = {k: v for k, v in content.items() if k not in ("padding", "truncation")}
        self._special = {
            number
            for number, token in tokeniser.get_added_tokens_decoder().items()
            if token.special
        }

    @classmethod
    def load(cls, path: Path) -> WordPieces:
        """Read a ``tokenizer.json``.

        Raises:
            ConfigurationError: the package that reads it is not installed.
            DataError: it is missing, damaged, or its padding is not number 0.
        """
        try:
            from tokenizers import Tokenizer
        except ImportError as error:
            raise ConfigurationError(f"data.tokeniser={path} needs an extra: {_EXTRA}") from error
        try:
            text = path.read_text(encoding="utf-8")
            tokeniser = Tokenizer.from_str(text)
        except Exception as error:  # the package raises nothing narrower
            reason = str(error).splitlines()[0]
            raise DataError(
                f"data.tokeniser={path} cannot be read ({reason}): name the tokenizer.json of a "
                "pretrained text encoder"
            ) from error
        tokeniser.no_padding()
        tokeniser.no_truncation()
        pieces = cls(tokeniser, json.loads(text))
        if pieces.words[PADDING] not in ("[PAD]", "<pad>"):
            raise DataError(
                f"data.tokeniser={path}: number 0 is {pieces.words[PADDING]!r}, where padding must "
                "be: take the tokeniser of a BERT"
            )
        return pieces

    @property
    def sha256(self) -> str:
        """The identity of the tokenization: pieces, numbers and the rules that cut captions."""
        return sha256_of_json(self._rules)

    def encode(self, text: str) -> list[int]:
        """Return the numbers of the caption's pieces; what the tokeniser cannot name is dropped."""
        return [number for number in self._numbers_of(text) if number not in self._special]

    def unknown(self, text: str) -> list[str]:
        """Return the words of a caption that :meth:`encode` drops a piece of."""
        encoding = self._tokeniser.encode(text, add_special_tokens=False)
        found = zip(encoding.ids, encoding.offsets, strict=True)
        return [text[begin:end] for number, (begin, end) in found if number in self._special]

    def _numbers_of(self, text: str) -> Sequence[int]:
        numbers: list[int] = self._tokeniser.encode(text, add_special_tokens=False).ids
        return numbers
