"""A contact sheet: some samples of a split with a caption each, to be looked at by a person.

Captions that belong to other images, wrong crops and turned photographs are seen at a glance
here and by no check.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator

from PIL import Image, ImageDraw, ImageFont

from t2i_hpc.data.images import Pixels, decode
from t2i_hpc.data.manifest import Manifest
from t2i_hpc.data.reader import Reader

SAMPLES = 64
_COLUMNS = 8
_SIDE, _LINES, _LINE, _GAP = 160, 4, 14, 10
_PAPER, _INK, _FAINT = (255, 255, 255), (25, 28, 33), (110, 116, 125)
_TEXT_SIZE, _LETTERS = 11, 27  # letters that fit into the width of a picture


def contact_sheet(manifest: Manifest) -> Image.Image:
    """Draw 64 samples (or all, if there are fewer), evenly spread over the split.

    Each picture is whole, scaled to fit 160 × 160 px; below it stand the first caption and the
    sample's number and key.

    Raises:
        DataError: a sample is damaged.
    """
    shown = min(SAMPLES, manifest.sample_count)
    columns = min(_COLUMNS, shown)
    rows = -(-shown // columns)
    width, height = _SIDE + _GAP, _SIDE + (_LINES + 1) * _LINE + _GAP
    sheet = Image.new("RGB", (columns * width + _GAP, rows * height + _GAP), _PAPER)
    for place, (number, key, caption, image) in enumerate(_spread(manifest, shown)):
        row, column = divmod(place, columns)
        corner = (_GAP + column * width, _GAP + row * height)
        _draw(sheet, corner, image, caption, f"{number} {key}")
    return sheet


def _spread(manifest: Manifest, shown: int) -> Iterator[tuple[int, str, str, Pixels]]:
    reader = Reader(manifest)
    for place in range(shown):
        number = place * manifest.sample_count // shown
        sample = reader.read(number)
        image = decode(sample.image, f"{sample.key} ({reader.name_of(number)})")
        yield number, sample.key, sample.captions[0], image


def _draw(
    sheet: Image.Image, corner: tuple[int, int], image: Pixels, caption: str, name: str
) -> None:
    left, top = corner
    picture = Image.fromarray(image)
    scale = _SIDE / max(picture.size)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    centred = (left + (_SIDE - size[0]) // 2, top + (_SIDE - size[1]) // 2)
    sheet.paste(picture.resize(size, Image.Resampling.BICUBIC), centred)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=_TEXT_SIZE)
    lines = textwrap.wrap(caption, _LETTERS, max_lines=_LINES, placeholder=" …")
    for number, line in enumerate(lines):
        draw.text((left, top + _SIDE + 2 + number * _LINE), line, _INK, font)
    label = name if len(name) <= _LETTERS else f"{name[: _LETTERS - 1]}…"
    draw.text((left, top + _SIDE + 4 + _LINES * _LINE), label, _FAINT, font)
