"""What a person asks to be generated: captions, checked and tokenized before a network runs.

``a {red,blue} bird`` stands for one caption a color: the papers show what a text changes by rows
that differ in a word (SSA-GAN Figs. 6 and 11). Several swaps in one caption multiply, the last
one changing quickest.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from t2i_hpc.common.errors import ConfigurationError
from t2i_hpc.config.evaluation import GenerationConfig
from t2i_hpc.data.captions import Vocabulary, encode_caption, pad
from t2i_hpc.data.split import Split
from t2i_hpc.sampling.caption_list import read_caption_list

MOST_ROWS = 64
_SWAP = re.compile(r"\{([^{}]*)\}")


def encode_captions(
    captions: Sequence[str], vocabulary: Vocabulary, max_tokens: int, seed: int
) -> tuple[Tensor, Tensor]:
    """Return tokens int64 (B, max_tokens) and lengths int64 (B,).

    A caption that is longer is cut to a random subset of its tokens in order, by the seed and
    its text alone, so that a caption means the same wherever it stands.
    """
    tokens, lengths = pad(
        [
            encode_caption(caption, vocabulary, max_tokens, (seed, f"words of {caption}", 0))
            for caption in captions
        ],
        max_tokens,
    )
    return torch.from_numpy(tokens), torch.from_numpy(lengths)


def token_texts(tokens: Tensor, lengths: Tensor, vocabulary: Vocabulary) -> list[list[str]]:
    """Return the words of each row of tokens (B, T), of which the first `lengths` (B,) count."""
    rows = zip(tokens.tolist(), lengths.tolist(), strict=True)
    return [[vocabulary.words[token] for token in row[:length]] for row, length in rows]


@dataclass(frozen=True)
class Row:
    """A caption, and the text with braces that asked for it."""

    caption: str
    asked: str


def expand(captions: Sequence[str], most: int | None = MOST_ROWS) -> list[Row]:
    """Return a row for every choice of words, in the order asked; None: any number of them.

    Raises:
        ConfigurationError: braces that are open, nested or empty, an empty caption, or more than
            `most` rows in all.
    """
    choices = [_choices(caption) for caption in captions]
    count = sum(math.prod(map(len, parts)) for parts in choices)
    if most is not None and count > most:
        raise ConfigurationError(
            f"these captions make {count:,} rows: a grid has {most} at most, so swap fewer "
            "words or generate in several calls"
        )
    return [
        Row(_caption(words, asked), asked)
        for asked, parts in zip(captions, choices, strict=True)
        for words in itertools.product(*parts)
    ]


def _choices(caption: str) -> list[list[str]]:
    """Split a caption into its parts, each with the texts that may stand there."""
    pieces = _SWAP.split(caption)
    plain, swaps = pieces[::2], pieces[1::2]
    if any("{" in text or "}" in text for text in plain):
        raise ConfigurationError(
            f"the braces of the caption {caption!r} are open or nested: write {{red,blue}} for "
            "words to swap, and none inside another"
        )
    if any(not swap.replace(",", "").strip() for swap in swaps):
        raise ConfigurationError(
            f"braces of the caption {caption!r} are empty: write the words to swap into them, "
            "as in {red,blue}"
        )
    offered = [[word.strip() for word in swap.split(",")] for swap in swaps]
    parts = [[[text], words] for text, words in zip(plain, offered, strict=False)]
    return [*itertools.chain.from_iterable(parts), [plain[-1]]]


def _caption(words: Sequence[str], asked: str) -> str:
    caption = " ".join("".join(words).split())
    if not caption:
        raise ConfigurationError(f"the caption {asked!r} is empty: write some words")
    return caption


@dataclass(frozen=True)
class ReadRow:
    """A row as the networks read it.

    Attributes:
        caption: the text.
        asked: the text with braces that asked for it.
        words: the words that are read, in order.
        unknown: words that the run's vocabulary does not have.
        left_out: number of known words beyond those that the run reads of a caption.
    """

    caption: str
    asked: str
    words: list[str]
    unknown: list[str]
    left_out: int

    @property
    def notes(self) -> list[str]:
        """What a person should know before believing the pictures."""
        notes = []
        if self.unknown:
            # By what was asked: rows that share their unknown words share the note.
            notes.append(f"unknown words left out of {self.asked!r}: {', '.join(self.unknown)}")
        if self.left_out:
            read = " ".join(self.words)
            notes.append(f"{self.caption!r} is too long, {len(self.words)} words are read: {read}")
        return notes


def asked_rows(config: GenerationConfig) -> list[Row]:
    """Return the rows that the configuration names, none where it names no captions.

    Raises:
        ConfigurationError: a captions file that cannot be read or is empty, or wrong braces.
    """
    listed = read_caption_list(config.captions_file).entries if config.captions_file else []
    return expand([*config.captions, *(entry.caption for entry in listed)])


def refuse_given(config: GenerationConfig, keys: Sequence[str], why: str) -> None:
    """Refuse settings that would have no effect.

    Args:
        config: of the command.
        keys: of the settings.
        why: the rest of the sentence.

    Raises:
        ConfigurationError: one of them is not what it is by default.
    """
    usual = GenerationConfig()
    for key in keys:
        if getattr(config, key) != getattr(usual, key):
            raise ConfigurationError(f"{key}= {why}")


def rows_of_split(split: Split, config: GenerationConfig) -> list[Row]:
    """Return rows for captions of a split, evenly spread over it."""
    rows = min(config.rows, split.count)
    numbers = [row * split.count // rows for row in range(rows)]
    captions = [split.caption(number, config.seed)[1] for number in numbers]
    return [Row(caption, caption) for caption in captions]


def read_rows(
    rows: Sequence[Row], vocabulary: Vocabulary, longest: int, seed: int
) -> list[ReadRow]:
    """Return what the networks will read of each row.

    Args:
        rows: captions of any length.
        vocabulary: of the run.
        longest: words that the run reads of a caption; of longer ones a subset by `seed`.
        seed: of that subset.

    Raises:
        ConfigurationError: a caption of which no word is known.
    """
    for row in rows:
        if not vocabulary.encode(row.caption):
            raise ConfigurationError(
                f"no word of the caption {row.caption!r} is in the run's vocabulary of "
                f"{vocabulary.size:,} words; use words of its training captions"
            )
    tokens, lengths = encode_captions([row.caption for row in rows], vocabulary, longest, seed)
    return [
        ReadRow(
            row.caption,
            row.asked,
            words,
            vocabulary.unknown(row.caption),
            len(vocabulary.encode(row.caption)) - len(words),
        )
        for row, words in zip(rows, token_texts(tokens, lengths, vocabulary), strict=True)
    ]
