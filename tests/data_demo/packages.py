"""Two tiny made-up packages in the layout of the real ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

SUBGROUPS = {"42": "food-fruit", "25": "person-role", "94": "keycap", "98": "country-flag"}
ENTRIES: list[dict[str, Any]] = [
    {"hexcode": "1F34E", "label": "red apple", "group": 4, "subgroup": 42, "tags": ["food"]},
    {"hexcode": "1F34F", "label": "green apple", "group": 4, "subgroup": 42, "tags": ["food"]},
    {"hexcode": "1F34B", "label": "lemon", "group": 4, "subgroup": 42, "tags": ["food", "sour"]},
    {"hexcode": "1F347", "label": "grapes", "group": 4, "subgroup": 42, "tags": ["food"]},
    {"hexcode": "1F352", "label": "cherries", "group": 4, "subgroup": 42, "tags": ["food"]},
    {"hexcode": "1F9D1-200D-1F680", "label": "astronaut", "group": 1, "subgroup": 25},
    {"hexcode": "1F468-200D-1F680", "label": "man astronaut", "group": 1, "subgroup": 25},
    {"hexcode": "0031-FE0F-20E3", "label": "keycap: 1", "group": 8, "subgroup": 94},
    {"hexcode": "1F1F3-1F1F1", "label": "flag: Netherlands", "group": 9, "subgroup": 98},
    {"hexcode": "1F3FB", "label": "light skin tone", "group": 2, "subgroup": 32},
    {"hexcode": "1F350", "label": "pear", "group": 4, "subgroup": 42},
]
TAKEN = {"1f34e", "1f34f", "1f34b", "1f347", "1f352", "1f9d1-200d-1f680"}


def make_packages(folder: Path) -> tuple[Path, Path]:
    """Write both packages under `folder`; every entry but the pear has a picture."""
    pictures, names = folder / "pictures", folder / "names"
    for part in (pictures / "assets", names / "en", names / "meta"):
        part.mkdir(parents=True)
    (names / "en" / "data.json").write_text(json.dumps(ENTRIES))
    (names / "meta" / "groups.json").write_text(json.dumps({"subgroups": SUBGROUPS}))
    for place, entry in enumerate(ENTRIES[:-1]):
        picture = disc((200, 10 * place, 30), (96, 104 if place == 1 else 96))
        picture.save(pictures / "assets" / f"{entry['hexcode'].lower()}.webp", lossless=True)
    return pictures, names


def disc(color: tuple[int, int, int], size: tuple[int, int]) -> Image.Image:
    """Draw a disc on a transparent ground."""
    picture = Image.new("RGBA", size)
    ImageDraw.Draw(picture).ellipse((8, 8, 88, 88), fill=(*color, 255))
    return picture
