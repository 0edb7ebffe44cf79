"""Grids of pictures: rows are captions, columns are noise; and masks beside their picture.

The pixels of the pictures are put into the grid unchanged (or enlarged by a whole number), so
that what one looks at is what was drawn. The width of the captions' column travels in the
PNG's text, so that pictures can be cut out of the grid again.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageDraw, ImageFont, PngImagePlugin
from torch import Tensor

from t2i_hpc.common.files import write_bytes

PICTURES_LEFT = "t2i_hpc pictures left"  # key of the PNG text: pixels left of the pictures
_GAP = 2
_PAPER, _INK, _FAINT = (255, 255, 255), (25, 28, 33), (110, 116, 125)
_SMALLEST_TEXT, _LARGEST_TEXT = 11, 22

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def picture_grid(
    images: Tensor, columns: int, captions: Sequence[str] | None = None, scale: int = 1
) -> Image.Image:
    """Lay pictures out in rows, with each row's caption on its left.

    Args:
        images: uint8 (R·columns, 3, H, W), row by row.
        columns: pictures a row.
        captions: R texts; None or empty leaves the column of captions out.
        scale: each pixel becomes scale × scale pixels.

    Returns:
        An RGB picture; ``info[PICTURES_LEFT]`` says where the pictures begin.

    Raises:
        ValueError: the pictures do not fill whole rows, or captions are not one a row.
    """
    cells = _enlarged(images, scale)
    height, width = cells.shape[1:3]
    rows, rest = divmod(len(cells), columns)
    if rest or (captions and len(captions) != rows):
        raise ValueError(f"{len(cells)} pictures, {columns} columns, {captions and len(captions)}")
    left = _caption_width(height) if captions else 0
    size = (left + columns * (width + _GAP) - _GAP, rows * (height + _GAP) - _GAP)
    grid = Image.new("RGB", size, _PAPER)
    for place, cell in enumerate(cells):
        row, column = divmod(place, columns)
        corner = (left + column * (width + _GAP), row * (height + _GAP))
        grid.paste(Image.fromarray(cell), corner)
    for row, caption in enumerate(captions or ()):
        _write_caption(grid, caption, row * (height + _GAP), left, height)
    grid.info[PICTURES_LEFT] = str(left)
    return grid


def mask_grid(images: Tensor, masks: Sequence[Tensor], scale: int = 1) -> Image.Image:
    """Lay out one row a picture: the picture, then its masks in grey, labelled with their sizes.

    Args:
        images: uint8 (R, 3, H, W).
        masks: each (R, 1, h, w) in [0, 1]; smaller ones are enlarged without smoothing.
        scale: each pixel of a picture becomes scale × scale pixels.
    """
    cells = _enlarged(images, scale)
    height, width = cells.shape[1:3]
    font = _font(max(_SMALLEST_TEXT, min(_LARGEST_TEXT, height // 6)))
    head = _line_height(font) + 2 * _GAP
    size = ((1 + len(masks)) * (width + _GAP) - _GAP, head + len(cells) * (height + _GAP) - _GAP)
    grid = Image.new("RGB", size, _PAPER)
    strips = [cells, *(_grey(mask, height, width) for mask in masks)]
    sizes = [f"{mask.shape[-2]} x {mask.shape[-1]}" for mask in masks]
    for column, (label, strip) in enumerate(zip(["image", *sizes], strips, strict=True)):
        left = column * (width + _GAP)
        ImageDraw.Draw(grid).text((left + width // 2, _GAP), label, _INK, font, anchor="ma")
        for row, cell in enumerate(strip):
            grid.paste(Image.fromarray(cell), (left, head + row * (height + _GAP)))
    return grid


def save_picture(picture: Image.Image, path: Path) -> None:
    """Write a PNG atomically, with the place where a grid's pictures begin."""
    text = PngImagePlugin.PngInfo()
    if PICTURES_LEFT in picture.info:
        text.add_text(PICTURES_LEFT, picture.info[PICTURES_LEFT])
    stream = io.BytesIO()
    picture.save(stream, "PNG", optimize=True, pnginfo=text)
    write_bytes(path, stream.getvalue())


def _enlarged(images: Tensor, scale: int) -> npt.NDArray[np.uint8]:
    """Return (N, H·scale, W·scale, 3)."""
    pixels = images.permute(0, 2, 3, 1).cpu().numpy()
    return pixels.repeat(scale, axis=1).repeat(scale, axis=2)


def _grey(mask: Tensor, height: int, width: int) -> npt.NDArray[np.uint8]:
    """Return a mask as grey pictures (R, height, width, 3), nearest neighbour."""
    levels = (mask.detach().float().clamp(0, 1) * 255).round()
    sized = torch.nn.functional.interpolate(levels, (height, width), mode="nearest")
    return _enlarged(sized.to(torch.uint8).expand(-1, 3, -1, -1), 1)


def _caption_width(height: int) -> int:
    return max(170, 3 * height if height < 128 else 2 * height)


def _write_caption(grid: Image.Image, caption: str, top: int, width: int, height: int) -> None:
    """Write a caption in the largest size that fits into its cell; cut it if none does."""
    margin = 6
    for size in range(_LARGEST_TEXT, _SMALLEST_TEXT - 1, -1):
        font = _font(size)
        lines = list(wrapped(caption, font, width - 2 * margin))
        if len(lines) * _line_height(font) <= height and 5 * size <= max(height, 64):
            break
    fitting = max(1, height // _line_height(font))
    if len(lines) > fitting:
        lines = [*lines[: fitting - 1], lines[fitting - 1] + " …"]
    draw = ImageDraw.Draw(grid)
    start = top + (height - len(lines) * _line_height(font)) // 2
    for number, line in enumerate(lines):
        draw.text((margin, start + number * _line_height(font)), line, _INK, font)


def wrapped(text: str, font: Font, width: int) -> Iterator[str]:
    """Break a text into lines of at most `width` pixels, between words where possible."""
    line = ""
    for word in text.split():
        longer = f"{line} {word}" if line else word
        if line and font.getlength(longer) > width:
            yield line
            longer = word
        line = longer
    yield line


def _font(size: int) -> Font:
    return ImageFont.load_default(size=size)


def _line_height(font: Font) -> int:
    return round(1.25 * getattr(font, "size", _SMALLEST_TEXT))
