"""Captions as lists of word numbers, the way AttnGAN's text encoders expect them.

The rules are those of the reference implementations (AttnGAN, DM-GAN, SSA-GAN), because a
text encoder is useless with another tokenisation or vocabulary than the one it was trained
with: lower-case runs of word characters, reduced to ASCII; words numbered in order of first
appearance; number 0 is padding.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from t2i_hpc.common.errors import DataError
from t2i_hpc.common.files import sha256_of_json, write_json

PADDING = 0
PADDING_WORD = "<end>"
_WORD = re.compile(r"\w+")
_FORMAT = 1


def tokenise(text: str) -> list[str]:
    """Return the words of a caption: lower-case, ASCII only, without punctuation.

    U+FFFD (left by a broken decoding in CUB's captions) is no word character and so counts as
    a space; other characters outside ASCII are dropped from their word, and words left empty
    are dropped.
    """
    words = _WORD.findall(text.lower())
    if text.isascii():
        return words
    reduced = (word.encode("ascii", "ignore").decode("ascii") for word in words)
    return [word for word in reduced if word]


class Vocabulary:
    """Words and their numbers; number 0 is padding and stands for no word of any caption."""

    def __init__(self, words: Sequence[str]) -> None:
        self.words = tuple(words)
        self._numbers = {word: number for number, word in enumerate(self.words) if number}

    @classmethod
    def from_captions(cls, texts: Iterable[str]) -> Vocabulary:
        """Number every word of `texts` in order of first appearance, from 1 on."""
        seen = dict.fromkeys(word for text in texts for word in tokenise(text))
        return cls([PADDING_WORD, *seen])

    @classmethod
    def load(cls, path: Path) -> Vocabulary:
        """Read a vocabulary that :meth:`save` wrote.

        Raises:
            DataError: the file is missing, damaged or of another format.
        """
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise DataError(
                f"there is no vocabulary {path}; build the shards with t2i_hpc.shards, which "
                "writes it beside the splits"
            ) from error
        except (OSError, ValueError, RecursionError) as error:
            raise DataError(f"the vocabulary {path} cannot be read: {error}") from error
        return cls(_checked_words(content, path))

    def save(self, path: Path) -> None:
        """Write the vocabulary as JSON, atomically."""
        write_json(path, self._content())

    @property
    def size(self) -> int:
        """Number of words, the padding included: the rows of an embedding table."""
        return len(self.words)

    @property
    def sha256(self) -> str:
        """The identity of the vocabulary, independent of how its file is laid out."""
        return sha256_of_json(self._content())

    def encode(self, text: str) -> list[int]:
        """Return the numbers of the caption's words; words that are not known are dropped."""
        return [self._numbers[word] for word in tokenise(text) if word in self._numbers]

    def unknown(self, text: str) -> list[str]:
        """Return the words of a caption that :meth:`encode` would drop."""
        return [word for word in tokenise(text) if word not in self._numbers]

    def _content(self) -> dict[str, Any]:
        return {"format": _FORMAT, "words": list(self.words)}


def select_words(ids: Sequence[int], longest: int, rng: np.random.Generator) -> list[int]:
    """Return at most `longest` of the ids: all of them, or a random subset in their order.

    A subset instead of the beginning is the reference's choice; it keeps late words alive.
    """
    if len(ids) <= longest:
        return list(ids)
    chosen = rng.permutation(len(ids))[:longest]
    return [ids[place] for place in sorted(chosen.tolist())]


def encode_caption(
    text: str, vocabulary: Vocabulary, longest: int, rng: np.random.Generator
) -> list[int]:
    """Return 1 to `longest` word numbers of a caption.

    A caption without any known word becomes the single padding word, so that its length is 1
    and encoders that cannot read empty captions see "nothing" instead of failing.
    """
    return select_words(vocabulary.encode(text), longest, rng) or [PADDING]


def pad(
    rows: Sequence[Sequence[int]], longest: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return tokens (B, longest), padded with 0, and lengths (B,), both int64.

    The width does not depend on the captions, so that every rank's tokens have one shape.
    """
    tokens = np.full((len(rows), longest), PADDING, dtype=np.int64)
    for row, ids in zip(tokens, rows, strict=True):
        row[: len(ids)] = ids
    return tokens, np.array([len(ids) for ids in rows], dtype=np.int64)


def _checked_words(content: object, path: Path) -> list[str]:
    found = content if isinstance(content, dict) else {}
    words = found.get("words")
    if not isinstance(words, list) or found.get("format") != _FORMAT:
        raise DataError(
            f"{path} is not a vocabulary of format {_FORMAT} (a JSON object with the keys "
            '"format" and "words"); build the shards again or name another file'
        )
    unfit = words[:1] != [PADDING_WORD] or not all(isinstance(word, str) for word in words)
    if unfit or len(set(words)) != len(words):
        raise DataError(
            f"the words of {path} must be different strings that begin with "
            f'"{PADDING_WORD}"; build the shards again or name another file'
        )
    return words
