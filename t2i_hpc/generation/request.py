"""What a person asks to be drawn: captions and where they come from, checked before drawing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from t2i_hpc.common.errors import ConfigurationError
from t2i_hpc.config.evaluation import GenerationConfig
from t2i_hpc.data.captions import Vocabulary
from t2i_hpc.data.split import Split
from t2i_hpc.generation.captions import encode_captions, spelt
from t2i_hpc.generation.swaps import Row, expand


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
    return expand([*config.captions, *_lines(config.captions_file)])


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
        for row, words in zip(rows, spelt(tokens, lengths, vocabulary), strict=True)
    ]


def _lines(name: str) -> list[str]:
    if not name:
        return []
    try:
        text = Path(name).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(
            f"captions_file={name} cannot be read ({error}): name a UTF-8 text file with one "
            "caption a line"
        ) from error
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    if not lines:
        raise ConfigurationError(f"captions_file={name} is empty: write one caption a line")
    return lines
