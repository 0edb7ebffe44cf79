"""The words of a tar's captions, counted by the process that reads the tar.

A merge adds up the counts of all tars in their order, so words are numbered by their first
appearance as if all captions had been read one after the other, and none is read twice.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from t2i_hpc.common.errors import DataError
from t2i_hpc.data.captions import MOST_COUNTED, tokenize, without_rare


@dataclass
class WordCounts:
    """The words of some captions.

    Attributes:
        words: how often each word stands there, in the order of first appearance.
        captions: number of captions.
        silent: how many have no word.
        example: the first that has none.
    """

    words: dict[str, int] = field(default_factory=dict)
    captions: int = 0
    silent: int = 0
    example: str = ""

    @classmethod
    def of(cls, captions: Iterable[str], letters: str) -> WordCounts:
        """Count the words of captions, see :func:`t2i_hpc.data.captions.tokenize`."""
        found, words = cls(), list[str]()
        for caption in captions:
            in_caption = tokenize(caption, letters)
            words += in_caption
            found.captions += 1
            if not in_caption:
                found.silent, found.example = found.silent + 1, found.example or caption
        found.words = dict(Counter(words))
        return found

    def add(self, more: WordCounts, bounded: bool) -> None:
        """Add the counts of captions that follow.

        Args:
            more: these counts.
            bounded: whether words that were seen once may be forgotten when there are too many.
        """
        for word, count in more.words.items():
            self.words[word] = self.words.get(word, 0) + count
        if bounded and len(self.words) > MOST_COUNTED:
            self.words = without_rare(self.words)
        self.captions += more.captions
        self.silent += more.silent
        self.example = self.example or more.example

    def content(self) -> bytes:
        """Return what a file of them holds."""
        counts = [self.words, self.captions, self.silent, self.example]
        return json.dumps(counts, ensure_ascii=False).encode()

    @classmethod
    def load(cls, path: Path) -> WordCounts:
        """Read such a file.

        Raises:
            DataError: it is damaged.
        """
        try:
            return cls(*json.loads(path.read_bytes()))
        except (ValueError, TypeError) as error:
            raise DataError(
                f"{path} is damaged: delete {path.parent} and index the tars again"
            ) from error
