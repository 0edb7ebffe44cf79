"""From an emoji's label to words for a sentence: "a red apple", and its kind, "a fruit".

Unicode's labels are names, not phrases: they have no article, put attributes behind a colon
and sometimes are no noun. Rules do most of it; what rules get wrong stands in ``words.json``,
written by hand while looking at the pictures, and so do the kinds of things.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

from t2i_hpc.common.errors import DataError

_HEAD_ENDS = re.compile(r" (?:with|in|of|on|at|behind|without|over|holding|wrestling)\b")
_SINGULAR_ENDS = ("'s", "ss", "us")
_PLURAL_WORDS = frozenset({"people", "men", "women"})
_CONSONANT_SOUNDS = ("uni", "eu", "ew", "one")


@dataclass(frozen=True)
class Words:
    """The tables written by hand.

    Attributes:
        kind_of_subgroup: emojibase's subgroup → a phrase true of each of its pictures.
        kind_of_label: the labels for which the subgroup's phrase is not true.
        phrase_of_label: the labels whose noun phrase no rule gives.
        no_topics: tags that say nothing of a picture: slang, fillers, parts of phrases.
    """

    kind_of_subgroup: dict[str, str]
    kind_of_label: dict[str, str]
    phrase_of_label: dict[str, str]
    no_topics: list[str]

    @classmethod
    def shipped(cls) -> Words:
        """Return the tables of ``words.json``."""
        return cls(**json.loads(Path(__file__).with_name("words.json").read_text("utf-8")))

    def kind(self, label: str, subgroup: str) -> str:
        """Return what kind of thing it is, e.g. "a fruit".

        Raises:
            DataError: a subgroup that has no phrase yet.
        """
        if subgroup not in self.kind_of_subgroup:
            raise DataError(
                f"no kind for the subgroup {subgroup!r} of {label!r}: "
                "add it to kind_of_subgroup in shards/demo/words.json"
            )
        return self.kind_of_label.get(label, self.kind_of_subgroup[subgroup])

    def thing(self, label: str) -> str:
        """Return the noun phrase with its article, e.g. "a red apple"."""
        return self.phrase_of_label.get(label) or noun_phrase(label)


def noun_phrase(label: str) -> str:
    """Return the label as a noun phrase with its article, by rules alone."""
    plain = label.replace("\N{RIGHT SINGLE QUOTATION MARK}", "'")
    if plain.endswith("o'clock"):
        return f"a clock showing {plain}"
    who, _, what = plain.partition(": ")
    if what:
        return f"{with_article(who)} with {what}"
    return plain if is_plural(plain) else with_article(plain)


def is_plural(phrase: str) -> bool:
    """Say whether the phrase's head noun (before "with", "in", "of", …) is plural."""
    head = _HEAD_ENDS.split(phrase)[0].split()
    if _PLURAL_WORDS & {head[0], head[-1]}:
        return True
    return head[-1].endswith("s") and not head[-1].endswith(_SINGULAR_ENDS)


def with_article(phrase: str) -> str:
    """Put "a" or "an" before the phrase, by the sound of its beginning."""
    low = phrase.lower()
    vowel = low.startswith("hour") or (
        low.startswith(tuple("aeiou")) and not low.startswith(_CONSONANT_SOUNDS)
    )
    return f"{'an' if vowel else 'a'} {phrase}"
