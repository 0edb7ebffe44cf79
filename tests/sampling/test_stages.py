"""Stages side by side, and the words that they read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from t2i_hpc.reporting.page import render
from t2i_hpc.reporting.run_record import RunRecord
from t2i_hpc.sampling.grids import PICTURES_LEFT, save_picture
from t2i_hpc.sampling.stages import Staged, most_read, stage_grid
from tests.reporting.made_up import make_run

CAPTIONS = ["a red circle", "a square"]


def staged() -> Staged:
    numbers = torch.Generator().manual_seed(0)
    images = [
        torch.randint(0, 256, (2, 3, side, side), dtype=torch.uint8, generator=numbers)
        for side in (32, 64, 128)
    ]
    maps = [torch.rand(2, 3, side, side, generator=numbers).softmax(1) for side in (32, 64)]
    return Staged(images, maps, [caption.split() for caption in CAPTIONS])


def test_stages_stand_side_by_side_with_their_own_pixels() -> None:
    images = staged().images
    grid = np.asarray(stage_grid(images, CAPTIONS).convert("RGB"))
    left = grid.shape[1] - 3 * 128 - 2 * 2
    bottom = grid[-128:]
    for column, image in enumerate(images):
        cell = bottom[:, left + 130 * column :][:, :128]
        factor = 128 // image.shape[-1]
        expected = image[1].permute(1, 2, 0).numpy().repeat(factor, 0).repeat(factor, 1)
        assert (cell == expected).all()


def test_the_most_read_words_and_their_shares() -> None:
    maps = torch.zeros(4, 8, 8)
    maps[0] = 0.1875
    maps[1, :, :4] = 0.5
    maps[2] = 0.3125
    maps[3, :, 4:] = 0.5
    read = most_read(["a", "red", "a", "bird"], maps, most=3)
    assert [(w.word, w.share) for w in read] == [("a", 0.3125), ("red", 0.25), ("bird", 0.25)]
    assert read[1].label == "red 25%"
    assert float(read[1].weights.sum()) == pytest.approx(1.0)
    assert not read[1].weights[:, 4:].any()
    assert len(most_read(["a"] * 3, maps)) == 1


def test_a_row_for_each_caption_and_stage_that_reads() -> None:
    grids = staged().grids(CAPTIONS)
    assert set(grids) == {"stages", "words"}
    rows, left = 4, int(grids["words"].info[PICTURES_LEFT])
    assert grids["words"].width == left + 4 * 130 - 2  # three words beside the image
    height = grids["words"].height // rows
    assert 128 < height < 170
    texts = np.asarray(grids["words"].convert("L"))[:, : left - 2]
    written = [bool((texts[row * height :][:height] < 128).any()) for row in range(rows)]
    assert written == [True, False, True, False]


def test_without_stages_there_is_nothing_to_show() -> None:
    assert Staged(staged().images[-1:], [], []).grids([]) == {}


def test_the_report_shows_both(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", steps=2, grids=1, scores=0)
    assert "Words that the stages read" not in render(RunRecord.read(run))
    for name, grid in staged().grids(CAPTIONS).items():
        save_picture(grid, run / name / "0000000200.png")
    page = render(RunRecord.read(run))
    assert "<h2>Stages</h2>" in page
    assert 'alt="Words after 200 images"' in page
