"""Whether a file of weights holds more layers than the network that is read from it.

transformers reads the first layers of a deeper network without a word; its features would be
those of no network at all.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

_LAYER = re.compile(r"(.*?\blayers?)\.\d+\.")


def layers_beyond(own: Iterable[str], unexpected: Iterable[str]) -> list[str]:
    """Return the names in a file that continue one of the network's own lists of layers.

    Other names that a file holds beside the network (heads, the other half of CLIP) are none.

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
