"""Captions with words to swap: ``a {red,blue} bird`` stands for one caption a colour.

The papers show what a text changes by rows that differ in a word (SSA-GAN Figs. 6 and 11).
Several swaps in one caption multiply, the last one changing quickest.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass

from t2i_hpc.common.errors import ConfigurationError

MOST_ROWS = 64
_SWAP = re.compile(r"\{([^{}]*)\}")


@dataclass(frozen=True)
class Row:
    """A caption to draw, and the text with braces that asked for it."""

    caption: str
    asked: str


def expand(captions: Sequence[str]) -> list[Row]:
    """Return a row for every choice of words, in the order asked.

    Raises:
        ConfigurationError: braces that are open, nested or empty, an empty caption, or more than
            64 rows in all.
    """
    choices = [_choices(caption) for caption in captions]
    count = sum(_product(parts) for parts in choices)
    if count > MOST_ROWS:
        raise ConfigurationError(
            f"these captions make {count:,} rows: a drawing has {MOST_ROWS} at most, so swap "
            "fewer words or draw the captions in several calls"
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


def _product(parts: Sequence[Sequence[str]]) -> int:
    count = 1
    for part in parts:
        count *= len(part)
    return count


def _caption(words: Sequence[str], asked: str) -> str:
    caption = " ".join("".join(words).split())
    if not caption:
        raise ConfigurationError(f"the caption {asked!r} is empty: write some words")
    return caption
