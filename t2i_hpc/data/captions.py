"""Captions as tokens: how text is cut into words, and the vocabularies that number them.

The rules are those of the reference implementations (AttnGAN, DM-GAN, SSA-GAN), because a
text encoder is useless with another tokenization or vocabulary than the one it was trained
with: lower-case runs of word characters, reduced to ASCII; words numbered in order of first
appearance; token 0 is padding. These rules leave nothing of a caption in Chinese or Russian, so a
vocabulary may keep the letters of every language (``letters`` is "unicode" in its file); it is
then another one than any that was published.

A pretrained text encoder brings its own tokenization (:class:`WordPieces`), without its special
tokens: the encoder puts those around a caption itself, so tokens, lengths and padding mean what
they mean for words, and every piece lines up with one feature of the encoder.

With another vocabulary of the same size an encoder runs without an error and reads other words,
so weights carry the identity of the vocabulary that they were trained with
(:func:`check_same_words`).
"""

from __future__ import annotations

import json
import logging
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from t2i_hpc.common.errors import ConfigurationError, DataError, RunError
from t2i_hpc.common.files import sha256_of_json, write_json
from t2i_hpc.common.seeds import generator

if TYPE_CHECKING:
    from tokenizers import Tokenizer


VOCABULARY_NOTE = "vocabulary"  # the key in the metadata of a safetensors file
PADDING = 0
PADDING_WORD = "<end>"
ASCII, UNICODE = "ascii", "unicode"
_CLIP_END = "<|endoftext|>"
_WORD = re.compile(r"\w+")
_FORMAT = 1
MOST_COUNTED = 1 << 22  # different words, of which those seen once are then forgotten
_EXTRA = "pip install 't2i-hpc[transformers]'"
_LOG = logging.getLogger("t2i_hpc")
_told: set[str] = set()
# Scripts without spaces between words, whose letters are words of their own, as in BERT's rule:
# Thai, Lao, Burmese, Khmer, kana, and Chinese characters with their extensions.
_WORD_OF_LETTER = (
    (0x0E00, 0x0EFF),
    (0x1000, 0x109F),
    (0x1780, 0x17FF),
    (0x3040, 0x30FF),
    (0x3400, 0x4DBF),
    (0x4E00, 0x9FFF),
    (0xF900, 0xFAFF),
    (0x20000, 0x323AF),
)


def without_rare(counts: Mapping[str, int]) -> dict[str, int]:
    """Forget words that were seen once: misspelt words of the web have no end."""
    return {word: count for word, count in counts.items() if count > 1}


def tokenize(text: str, letters: str = ASCII) -> list[str]:
    """Return the words of a caption: lower-case, without punctuation.

    With `letters` "unicode" the letters, marks and digits of every language make words. With
    "ascii", the rule of the reference implementations, only those of English do: U+FFFD (left by a
    broken decoding in CUB's captions) counts as a space, other characters outside ASCII are
    dropped from their word, and words left empty are dropped.
    """
    if text.isascii():
        return _WORD.findall(text.lower())
    if letters == UNICODE:
        return _unicode_words(text)
    words = _WORD.findall(text.lower())
    reduced = (word.encode("ascii", "ignore").decode("ascii") for word in words)
    return [word for word in reduced if word]


def _unicode_words(text: str) -> list[str]:
    # Composed first, so that one letter is one however it was typed. Marks belong to words,
    # which the re module does not know: it would cut Hindi at each vowel sign.
    spaced, alone = list[str](), False
    for letter in unicodedata.normalize("NFC", text.lower()):
        kind = unicodedata.category(letter)[0]
        if letter != "_" and kind not in "LMN":
            spaced.append(" ")
            alone = False
        elif kind == "M":
            spaced.append(letter)
        else:
            before, alone = alone, _is_word(letter)
            spaced.append(f" {letter}" if before or alone else letter)
    return "".join(spaced).split()


def _is_word(letter: str) -> bool:
    return any(low <= ord(letter) <= high for low, high in _WORD_OF_LETTER)


class Vocabulary:
    """Words and their numbers; number 0 is padding and is no word of any caption.

    Args:
        words: by number.
        letters: which letters make words, "ascii" or "unicode".
    """

    # What is read of a caption that is too long: as SSA-GAN's and AttnGAN's code, any of its words.
    reads_beginning = False

    def __init__(self, words: Sequence[str], letters: str = ASCII) -> None:
        self.words, self.letters = tuple(words), letters
        self._numbers = {word: number for number, word in enumerate(self.words) if number}

    @classmethod
    def from_captions(
        cls, texts: Iterable[str], letters: str = ASCII, min_count: int = 1, max_words: int = 0
    ) -> Vocabulary:
        """Number the words of `texts` in order of first appearance, from 1 on.

        Args:
            texts: captions, read once.
            letters: which letters make words.
            min_count: leave out words that stand there less often.
            max_words: take the most frequent words alone, of equals the first; 0: all.
        """
        counts = dict[str, int]()
        bounded = min_count > 1 or max_words
        for text in texts:
            for word in tokenize(text, letters):
                counts[word] = counts.get(word, 0) + 1
            if bounded and len(counts) > MOST_COUNTED:
                counts = without_rare(counts)
        return cls.from_counts(counts, letters, min_count, max_words)

    @classmethod
    def from_counts(
        cls, counts: Mapping[str, int], letters: str = ASCII, min_count: int = 1, max_words: int = 0
    ) -> Vocabulary:
        """Number words that were counted, in their order, from 1 on; see :meth:`from_captions`."""
        words = [word for word, count in counts.items() if count >= min_count]
        if max_words and len(words) > max_words:
            taken = {*sorted(words, key=counts.__getitem__, reverse=True)[:max_words]}
            words = [word for word in words if word in taken]
        return cls([PADDING_WORD, *words], letters)

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
        return cls(*_checked(content, path))

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
        return [self._numbers[word] for word in self._tokens(text) if word in self._numbers]

    def unknown(self, text: str) -> list[str]:
        """Return the words of a caption that :meth:`encode` would drop."""
        return [word for word in self._tokens(text) if word not in self._numbers]

    def _tokens(self, text: str) -> list[str]:
        return tokenize(text, self.letters)

    def _content(self) -> dict[str, Any]:
        content: dict[str, Any] = {"format": _FORMAT, "words": list(self.words)}
        return content if self.letters == ASCII else content | {"letters": self.letters}


def _checked(content: object, path: Path) -> tuple[list[str], str]:
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
    letters = found.get("letters", ASCII)
    if letters not in (ASCII, UNICODE):
        raise DataError(
            f"{path} has letters={letters!r}, which is not known: install a newer t2i_hpc"
        )
    return words, letters


class WordPieces(Vocabulary):
    """Pieces of words and their numbers, as a tokenizer that was trained elsewhere has them."""

    def __init__(self, tokenizer: Tokenizer, content: dict[str, Any]) -> None:
        numbers = tokenizer.get_vocab()
        words = [""] * (max(numbers.values()) + 1)
        for word, number in numbers.items():
            words[number] = word
        super().__init__(words)
        self._tokenizer = tokenizer
        # CLIP's own code and GALIP's cut captions behind the last token that fits.
        self.reads_beginning = _CLIP_END in numbers
        # Padding and truncation are ours; the rest (normalizer, merges, pieces) makes the tokens.
        self._rules = {k: v for k, v in content.items() if k not in ("padding", "truncation")}
        self._special = {
            number
            for number, token in tokenizer.get_added_tokens_decoder().items()
            if token.special
        }

    @classmethod
    def load(cls, path: Path) -> WordPieces:
        """Read a ``tokenizer.json``.

        Raises:
            ConfigurationError: the package that reads it is not installed.
            DataError: it is missing, damaged, or not CLIP's and its padding is not number 0.
        """
        try:
            from tokenizers import Tokenizer
        except ImportError as error:
            raise ConfigurationError(f"data.tokenizer={path} needs an extra: {_EXTRA}") from error
        try:
            text = path.read_text(encoding="utf-8")
            tokenizer = Tokenizer.from_str(text)
        except Exception as error:  # the package raises nothing narrower
            reason = str(error).splitlines()[0]
            raise DataError(
                f"data.tokenizer={path} cannot be read ({reason}): name the tokenizer.json of a "
                "pretrained text encoder"
            ) from error
        tokenizer.no_padding()
        tokenizer.no_truncation()
        pieces = cls(tokenizer, json.loads(text))
        # CLIP's has none, and its number 0 is a "!": its encoder looks at lengths alone.
        if pieces.words[PADDING] not in ("[PAD]", "<pad>") and _CLIP_END not in pieces.words:
            raise DataError(
                f"data.tokenizer={path}: number 0 is {pieces.words[PADDING]!r}, where padding must "
                "be: take the tokenizer of a BERT or a CLIP"
            )
        return pieces

    @property
    def sha256(self) -> str:
        """The identity of the tokenization: pieces, numbers and the rules that cut captions."""
        return sha256_of_json(self._rules)

    def encode(self, text: str) -> list[int]:
        """Return the numbers of the caption's pieces; what the tokenizer cannot name is dropped."""
        return [number for number in self._numbers_of(text) if number not in self._special]

    def unknown(self, text: str) -> list[str]:
        """Return the words of a caption that :meth:`encode` drops a piece of."""
        encoding = self._tokenizer.encode(text, add_special_tokens=False)
        found = zip(encoding.ids, encoding.offsets, strict=True)
        return [text[begin:end] for number, (begin, end) in found if number in self._special]

    def _numbers_of(self, text: str) -> Sequence[int]:
        numbers: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return numbers


def select_tokens(tokens: Sequence[int], most: int, rng: np.random.Generator) -> list[int]:
    """Return at most `most` of the tokens: all of them, or a random subset in their order.

    A subset instead of the beginning is the reference's choice; it keeps late words alive.
    """
    if len(tokens) <= most:
        return list(tokens)
    chosen = rng.permutation(len(tokens))[:most]
    return [tokens[place] for place in sorted(chosen.tolist())]


def encode_caption(
    text: str, vocabulary: Vocabulary, max_tokens: int, chosen_by: tuple[int, str, int]
) -> list[int]:
    """Return 1 to `max_tokens` tokens of a caption.

    A caption without any known word becomes the single padding token, so that its length is 1
    and encoders that cannot read empty captions see "nothing" instead of failing.

    Args:
        text: the caption.
        vocabulary: numbers its words.
        max_tokens: of longer captions a random subset is taken; of CLIP's tokens the first.
        chosen_by: (seed, purpose, index) of that choice, see :func:`common.seeds.generator`.
    """
    tokens = vocabulary.encode(text)
    if vocabulary.reads_beginning:
        tokens = tokens[:max_tokens]
    elif len(tokens) > max_tokens:  # a generator costs more than all else here
        tokens = select_tokens(tokens, max_tokens, generator(*chosen_by))
    return tokens or [PADDING]


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


def check_same_words(weights: str, trained_with: str, present: str, advice: str) -> None:
    """Compare the vocabulary that weights were trained with with that of the data.

    Args:
        weights: what they are called in messages.
        trained_with: its SHA-256; empty: not recorded, which is accepted with one warning.
        present: SHA-256 of the data's vocabulary or tokenizer; empty: there is none to compare.
        advice: what to do where they differ.

    Raises:
        RunError: they differ.
    """
    if not present or trained_with == present:
        return
    if trained_with:
        raise RunError(
            f"{weights} was trained with another vocabulary than the data has now (SHA-256 "
            f"{trained_with[:12]}…, not {present[:12]}…), so tokens would mean other words: "
            f"{advice}"
        )
    if weights not in _told:
        _told.add(weights)
        _LOG.warning(
            "%s does not record the vocabulary it was trained with: make sure that the data's "
            "vocabulary numbers the words in the same order",
            weights,
        )
