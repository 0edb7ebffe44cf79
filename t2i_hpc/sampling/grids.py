"""Grids of pictures: rows are captions, columns are noise; and masks beside their picture.

The pixels of the pictures are put into the grid unchanged (or enlarged by a whole number), so
that what one looks at is what was generated. The width of the captions' column travels in the
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


def cell_box(grid: Image.Image, image: Tensor, row: int, column: int) -> tuple[int, ...]:
    """Return (left, top, width, height) of a picture (3, H, W) in its :func:`picture_grid`."""
    height, width = image.shape[1:]
    left = int(grid.info[PICTURES_LEFT]) + column * (width + _GAP)
    return left, row * (height + _GAP), width, height


def mask_grid(
    images: Tensor,
    masks: Sequence[Tensor],
    captions: Sequence[str] | None = None,
    scale: int = 1,
) -> Image.Image:
    """Lay out one row a picture: the picture, then its masks in grey, labelled with their sizes.

    With captions on the left this is SSA-GAN's Figs. 5 and 10.

    Args:
        images: uint8 (R, 3, H, W).
        masks: each (R, 1, h, w) in [0, 1]; smaller ones are enlarged without smoothing.
        captions: R texts; None leaves the column of captions out.
        scale: each pixel of a picture becomes scale × scale pixels.
    """
    height, width = images.shape[2:]
    columns = [images.cpu(), *(grey(mask, height, width) for mask in masks)]
    rows = [list(row) for row in zip(*columns, strict=True)]
    head = ["image", *(f"{mask.shape[-2]} x {mask.shape[-1]}" for mask in masks)]
    return labelled_grid(rows, [head, *([] for _ in rows[1:])], captions, scale)


def paired_grid(
    images: Tensor, masks: Tensor, columns: int, captions: Sequence[str], scale: int = 1
) -> Image.Image:
    """Lay out rows of captions × columns of noise, each picture with its last mask on its left.

    SSA-GAN's Figs. 6 and 11.

    Args:
        images: uint8 (R·columns, 3, H, W), row by row.
        masks: (R·columns, 1, h, w) in [0, 1].
        columns: pictures a row.
        captions: R texts.
        scale: each pixel of a picture becomes scale × scale pixels.
    """
    height, width = images.shape[2:]
    pairs = torch.stack([grey(masks, height, width), images.cpu()], dim=1)
    return picture_grid(pairs.flatten(0, 1), 2 * columns, captions, scale)


def labelled_grid(
    rows: Sequence[Sequence[Tensor]],
    labels: Sequence[Sequence[str]],
    captions: Sequence[str] | None = None,
    scale: int = 1,
) -> Image.Image:
    """Lay pictures out in rows, which may be of different lengths, with labels above the pictures.

    Args:
        rows: pictures uint8 (3, H, W), all of one size.
        labels: of each row one text a picture, or none at all: then it has no line for them.
        captions: a text for each row; None leaves the column of captions out.
        scale: each pixel becomes scale × scale pixels.
    """
    height, width = (side * scale for side in rows[0][0].shape[1:])
    size = max(_SMALLEST_TEXT, min(_LARGEST_TEXT, height // 6))
    heads = [(_line_height(_font(size)) + 2 * _GAP) * bool(row) for row in labels]
    tops = [sum(heads[: n + 1]) + n * (height + _GAP) for n in range(len(rows))]
    left = _caption_width(height) if captions else 0
    across = left + max(map(len, rows)) * (width + _GAP) - _GAP
    grid = Image.new("RGB", (across, tops[-1] + height), _PAPER)
    for row, row_labels, top, head in zip(rows, labels, tops, heads, strict=True):
        for column, cell in enumerate(_enlarged(torch.stack(list(row)), scale)):
            grid.paste(Image.fromarray(cell), (left + column * (width + _GAP), top))
        for column, label in enumerate(row_labels):
            middle = left + column * (width + _GAP) + width // 2
            _write_label(grid, label, (middle, top - head + _GAP), width, size)
    for caption, top in zip(captions or (), tops, strict=False):
        _write_caption(grid, caption, top, left, height)
    grid.info[PICTURES_LEFT] = str(left)
    return grid


def grey(mask: Tensor, height: int, width: int) -> Tensor:
    """Return masks (R, 1, h, w) in [0, 1] as uint8 (R, 3, height, width), nearest neighbor."""
    levels = (mask.detach().float().cpu().clamp(0, 1) * 255).round()
    sized = torch.nn.functional.interpolate(levels, (height, width), mode="nearest")
    return sized.to(torch.uint8).expand(-1, 3, -1, -1)


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


def _caption_width(height: int) -> int:
    return max(170, 3 * height if height < 128 else 2 * height)


def _write_label(
    grid: Image.Image, label: str, at: tuple[int, int], width: int, largest: int
) -> None:
    """Write a label around its middle, smaller or cut where it is wider than its picture."""
    sizes = range(largest, _SMALLEST_TEXT - 1, -1)
    font = next((f for f in map(_font, sizes) if f.getlength(label) <= width), _font(sizes[-1]))
    shown = label
    while len(shown) > 2 and font.getlength(shown) > width:
        shown = shown[:-2] + "…"
    ImageDraw.Draw(grid).text(at, shown, _INK, font, anchor="ma")


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
