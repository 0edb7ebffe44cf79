"""Attention maps as light on their picture, and in the report."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from t2i_hpc.reporting.overview import overview
from t2i_hpc.reporting.page import render
from t2i_hpc.reporting.run_record import RunRecord
from t2i_hpc.sampling.grids import PICTURES_LEFT, save_picture
from t2i_hpc.sampling.stages import WordMap, attention_grid
from tests.reporting.made_up import make_run
from tests.reporting.test_page import Balance


def one_region(row: int, column: int, side: int = 4) -> torch.Tensor:
    weights = torch.zeros(side, side)
    weights[row, column] = 1.0
    return weights


def test_a_picture_is_bright_where_the_word_looks() -> None:
    white = torch.full((1, 3, 128, 128), 255, dtype=torch.uint8)
    even = torch.full((4, 4), 1 / 16)
    words = [WordMap("red", one_region(0, 3)), WordMap("a", even)]
    grid = attention_grid(white, [words], ["a red circle"])
    left, head = int(grid.info[PICTURES_LEFT]), grid.height - 128
    light = np.asarray(grid.convert("L"))[head:, left:]
    picture, red, everywhere = (light[:, at : at + 128] for at in (0, 130, 260))
    assert (picture == 255).all()
    assert red[5, 120] == 255
    assert red[120, 5] < 50
    assert (everywhere == 255).all()
    assert head > 10
    assert (np.asarray(grid.convert("L"))[:head, left + 130 :] < 128).any()  # the words


def test_peaks_are_counted_in_even_attention() -> None:
    assert WordMap("red", one_region(1, 1)).peak == 16
    assert WordMap("a", torch.full((4, 4), 1 / 16)).peak == 1


def test_rows_may_have_fewer_words_and_small_pictures_are_enlarged() -> None:
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    rows = [
        [WordMap("red", one_region(0, 0))] * 3,
        [WordMap("averyverylongword" * 3, one_region(3, 3))],
    ]
    grid = attention_grid(images, rows, ["one", "two"])
    left = int(grid.info[PICTURES_LEFT])
    assert grid.width == left + 4 * 130 - 2
    shown = np.asarray(grid)[-128:, left : left + 128]
    assert (shown[::4, ::4] == images[1].permute(1, 2, 0).numpy()).all()
    assert (np.asarray(grid)[-128:, left + 260 :] == 255).all()


def test_the_report_shows_them(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", grids=0)
    for images in (0, 500):
        picture = torch.zeros(1, 3, 64, 64, dtype=torch.uint8)
        grid = attention_grid(picture, [[WordMap("red", one_region(0, 0))]], ["a <red> circle"])
        save_picture(grid, run / "attention" / f"{images:010d}.png")
    record = RunRecord.read(run)
    page = Balance(render(record))
    assert page.open == []
    assert "Attention" in page.headings
    assert len(page.sources) == 2
    assert "Text and image encoders" in page.text
    assert overview(record).height > 128
