"""Grids keep the pictures' pixels, in their order, and say where the pictures begin."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageFont

from t2i_hpc.sampling.grids import (
    PICTURES_LEFT,
    cell_box,
    mask_grid,
    paired_grid,
    picture_grid,
    save_picture,
    wrapped,
)
from tests.reporting.made_up import CAPTIONS, random_pictures

GAP = 2


def cell(grid: Image.Image, row: int, column: int, left: int, side: int) -> torch.Tensor:
    x, y = left + column * (side + GAP), row * (side + GAP)
    pixels = np.asarray(grid.crop((x, y, x + side, y + side)))
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1)


@pytest.mark.parametrize("captions", [None, CAPTIONS])
def test_pixels_are_unchanged_and_rows_are_captions(captions: list[str] | None) -> None:
    images = random_pictures(6, seed=1)
    grid = picture_grid(images, 3, captions)
    left = int(grid.info[PICTURES_LEFT])
    assert (left > 0) == (captions is not None)
    for place in range(6):
        row, column = divmod(place, 3)
        assert torch.equal(cell(grid, row, column, left, 32), images[place])


def test_each_row_has_its_own_caption_beside_it() -> None:
    white = torch.full((2, 3, 64, 64), 255, dtype=torch.uint8)
    grid = picture_grid(white, 1, ["a red circle", "a"])
    left = int(grid.info[PICTURES_LEFT])
    strip = np.asarray(grid.convert("L"))[:, :left]
    upper, lower = (strip[:64] < 128).sum(), (strip[66:] < 128).sum()
    assert upper > 3 * lower > 0
    assert (np.asarray(grid)[:, left:] == 255).all()


def test_a_long_caption_stays_in_its_cell() -> None:
    white = torch.full((3, 3, 32, 32), 255, dtype=torch.uint8)
    grid = picture_grid(white, 1, ["", "several words to be cut " * 20, ""])
    dark_rows = np.flatnonzero((np.asarray(grid.convert("L")) < 128).any(axis=1))
    assert dark_rows.size
    assert dark_rows.min() >= 34
    assert dark_rows.max() < 66


def test_scale_repeats_pixels() -> None:
    images = random_pictures(1, seed=2, side=4)
    grid = np.asarray(picture_grid(images, 1, scale=3))
    assert grid.shape == (12, 12, 3)
    assert (grid[::3, ::3] == images[0].permute(1, 2, 0).numpy()).all()
    assert (grid[1::3, 2::3] == grid[::3, ::3]).all()


def test_a_caption_too_few_is_an_error() -> None:
    with pytest.raises(ValueError, match="6 pictures, 3 columns"):
        picture_grid(random_pictures(6, seed=3), 3, ["only one"])


def test_masks_stand_beside_their_picture_as_grey() -> None:
    images = random_pictures(2, seed=4)
    small = torch.tensor([0.0, 1.0, 0.5, 0.25]).reshape(1, 1, 2, 2).repeat(2, 1, 1, 1)
    grid = mask_grid(images, [small, torch.ones(2, 1, 32, 32)])
    head = grid.height - 2 * 32 - GAP
    pixels = np.asarray(grid)
    assert grid.width == 3 * 32 + 2 * GAP
    assert (pixels[head : head + 32, :32] == images[0].permute(1, 2, 0).numpy()).all()
    mask = pixels[head : head + 32, 34:66, 0]
    assert [mask[0, 0], mask[0, 31], mask[31, 0], mask[31, 31]] == [0, 255, 128, 64]
    assert (mask[:16, :16] == 0).all()
    assert (pixels[head:, 68:][:32] == 255).all()


def test_masks_are_labelled_with_their_sizes() -> None:
    images = random_pictures(1, seed=5)
    without = np.asarray(mask_grid(images, []))
    grids = [np.asarray(mask_grid(images, [torch.ones(1, 1, side, side)])) for side in (4, 16)]
    head = without.shape[0] - 32
    assert (grids[0][:head, 34:] < 128).any()
    assert (grids[0][:head, 34:] != grids[1][:head, 34:]).any()


def test_mask_rows_have_their_captions_and_one_line_of_labels() -> None:
    images = random_pictures(2, seed=7)
    plain = mask_grid(images, [torch.ones(2, 1, 4, 4)])
    told = mask_grid(images, [torch.ones(2, 1, 4, 4)], CAPTIONS)
    left = int(told.info[PICTURES_LEFT])
    assert told.size == (plain.width + left, plain.height)
    assert (np.asarray(told)[:, left:] == np.asarray(plain)).all()
    assert (np.asarray(told.convert("L"))[:, :left] < 128).any()


def test_pairs_are_a_mask_and_its_picture() -> None:
    images = random_pictures(4, seed=8)
    masks = torch.linspace(0, 1, 4).view(4, 1, 1, 1)
    grid = paired_grid(images, masks, 2, CAPTIONS)
    left = int(grid.info[PICTURES_LEFT])
    for place in range(4):
        row, column = divmod(place, 2)
        level = round(255 * place / 3)
        assert (cell(grid, row, 2 * column, left, 32) == level).all()
        assert torch.equal(cell(grid, row, 2 * column + 1, left, 32), images[place])
    left_edge, top, width, height = cell_box(picture_grid(images, 2, CAPTIONS), images[3], 1, 1)
    assert (left_edge, top, width, height) == (left + 34, 34, 32, 32)


def test_a_saved_grid_is_lossless_and_remembers_its_captions_column(tmp_path: Path) -> None:
    grid = picture_grid(random_pictures(4, seed=6), 2, CAPTIONS)
    save_picture(grid, tmp_path / "folder" / "grid.png")
    with Image.open(tmp_path / "folder" / "grid.png") as opened:
        assert opened.info[PICTURES_LEFT] == grid.info[PICTURES_LEFT]
        assert (np.asarray(opened) == np.asarray(grid)).all()
    assert [path.name for path in (tmp_path / "folder").iterdir()] == ["grid.png"]


def test_text_is_broken_between_words() -> None:
    font = ImageFont.load_default(size=12)
    lines = list(wrapped("one two three four five six", font, 60))
    assert " ".join(lines) == "one two three four five six"
    assert len(lines) > 1
    assert all(font.getlength(line) <= 60 for line in lines)
