"""Which emoji are taken, and what is known of each: label, kind, tags, picture file, split.

Left out are flags and skin tones; pictures that only differ by the gender or the family of the
persons on them; half hours among the clocks; and the signs whose picture is a written
character or a control, which no caption can tell a network how to draw.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from t2i_hpc.common.errors import DataError

_COMPONENT, _FLAGS = 2, 9  # emojibase's groups of skin tones and hair styles, and of flags
_LEFT_OUT_SUBGROUPS = frozenset({"alphanum", "keycap", "zodiac", "av-symbol", "currency"})
_JOINER, _VARIATION = "200d", "fe0f"
_MAN_WOMAN, _GENDER_SIGNS = ("1f468", "1f469"), ("2640", "2642")
_TEST_PERCENT = 12


@dataclass(frozen=True)
class Emoji:
    """One emoji.

    Attributes:
        code: code points in lower-case hexadecimal, joined by "-", without fe0f: its key.
        label: Unicode's English name.
        subgroup: emojibase's name of its subgroup.
        class_id: number of the subgroup.
        tags: English words that people look for.
        picture: file of the picture.
    """

    code: str
    label: str
    subgroup: str
    class_id: int
    tags: tuple[str, ...]
    picture: Path

    @property
    def split(self) -> str:
        """Return "train" or "test", by the hash of the code alone."""
        return "test" if _hash(self.code) % 100 < _TEST_PERCENT else "train"


def read_emoji(pictures: Path, names: Path) -> list[Emoji]:
    """Return the emoji that are taken, in an order that mixes their kinds.

    Args:
        pictures: folder of the package with the pictures.
        names: folder of the package with labels, groups and tags.

    Raises:
        DataError: a package has another layout, or nothing is left.
    """
    try:
        entries = json.loads((names / "en" / "data.json").read_text("utf-8"))
        groups = json.loads((names / "meta" / "groups.json").read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{names} is not the package emojibase-data: {error}") from error
    files = {normal(path.stem): path for path in sorted((pictures / "assets").glob("*.webp"))}
    chosen = list(_chosen(entries, groups["subgroups"], files))
    if not chosen:
        raise DataError(f"no emoji of {names} has a picture in {pictures / 'assets'}")
    return sorted(chosen, key=lambda emoji: _hash("order of " + emoji.code))


def normal(code: str) -> str:
    """Return a hex code in lower case without fe0f, which packages write or leave out."""
    return "-".join(part for part in code.lower().split("-") if part != _VARIATION)


def _chosen(
    entries: list[dict[str, Any]], subgroups: dict[str, str], files: dict[str, Path]
) -> Iterator[Emoji]:
    for entry in entries:
        code = normal(entry["hexcode"])
        subgroup = subgroups.get(str(entry.get("subgroup")), "")
        if code in files and _is_taken(code, entry, subgroup):
            tags = tuple(entry.get("tags", ()))
            number = int(entry["subgroup"])
            yield Emoji(code, entry["label"], subgroup, number, tags, files[code])


def _is_taken(code: str, entry: dict[str, Any], subgroup: str) -> bool:
    if entry.get("group") in (None, _COMPONENT, _FLAGS) or subgroup in _LEFT_OUT_SUBGROUPS:
        return False
    return not _is_gender_variant(code) and not entry["label"].endswith("-thirty")


def _is_gender_variant(code: str) -> bool:
    parts = code.split("-")
    return _JOINER in parts and (parts[0] in _MAN_WOMAN or parts[-1] in _GENDER_SIGNS)


def _hash(text: str) -> int:
    return int(hashlib.sha256(text.encode()).hexdigest()[:12], 16)
