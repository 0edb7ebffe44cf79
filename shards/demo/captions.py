"""Five captions for an emoji, from five templates: what it is, its kind, its colors, its tags.

The same thing always gets the same words, so that a network can learn them. A caption has at
most 18 words, the number that training reads: optional endings are added while they fit.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from shards.demo.colors import join

MOST_WORDS = 18
_WORD = re.compile(r"\w+")
_PLAIN_TAG = re.compile(r"[a-z]{3,}")


def captions(thing: str, kind: str, colors: Sequence[str], tags: Sequence[str]) -> list[str]:
    """Return the five captions of one emoji.

    Args:
        thing: noun phrase with article, e.g. "a red apple".
        kind: what kind of thing it is, e.g. "a fruit".
        colors: names of its colors, largest first.
        tags: what people look for when they want it, most common first; may be empty.
    """
    topic = f", a picture about {join(tags)}" if tags else f", colored {join(colors)}"
    some = f" with some {colors[1]}" if colors[1:] else ""
    mostly = f"{kind}, mostly {colors[0]}"
    return [
        lengthened(f"a 3d emoji of {thing}", f", {kind}", " on a white background"),
        lengthened(f"{thing} in {join(colors)}", " on a white background"),
        shortest_last(f"{mostly}{some}: {thing}", f"{mostly}: {thing}"),
        lengthened(f"an icon of {thing}", topic),
        lengthened(f"a shiny picture of {thing}", f", {kind} in {join(colors)}", " on plain white"),
    ]


def lengthened(required: str, *optional: str) -> str:
    """Join the required words and as many of the optional endings as 18 words allow."""
    caption = required
    for ending in optional:
        if fits(caption + ending):
            caption += ending
    return caption


def shortest_last(*versions: str) -> str:
    """Return the first version of at most 18 words, else the last."""
    return next((version for version in versions if fits(version)), versions[-1])


def fits(caption: str) -> bool:
    """Say whether a caption has at most 18 words."""
    return len(_WORD.findall(caption)) <= MOST_WORDS


def common_tags(
    tags: Iterable[Sequence[str]], no_topics: Iterable[str], at_least: int = 4
) -> dict[str, int]:
    """Count in how many emoji each plain word is a tag; rare ones and `no_topics` are left out."""
    counts = Counter(tag for some in tags for tag in set(some))
    left_out = set(no_topics)
    return {
        tag: count
        for tag, count in counts.items()
        if count >= at_least and tag not in left_out and _PLAIN_TAG.fullmatch(tag)
    }


def choose_tags(
    tags: Sequence[str], counts: Mapping[str, int], said: str, most: int = 3
) -> list[str]:
    """Return the most common of an emoji's tags that add something to what is `said`.

    A tag that begins like a word that is there already ("smile", "smiling") adds nothing.
    """
    beginnings = {word[:4] for word in _WORD.findall(said.lower())}
    chosen: list[str] = []
    for tag in sorted(set(tags) & counts.keys(), key=lambda tag: (-counts[tag], tag)):
        if tag[:4] not in beginnings and len(chosen) < most:
            chosen.append(tag)
            beginnings.add(tag[:4])
    return chosen
