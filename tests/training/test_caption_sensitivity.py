"""Caption sensitivity: what it measures of a grid, what a run keeps of it, when it warns."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from t2i_hpc.common.files import append_json_line
from t2i_hpc.reporting.page import caption_sensitivity as section
from t2i_hpc.reporting.page import overfitting
from t2i_hpc.reporting.run_record import RunRecord
from t2i_hpc.training.callbacks.caption_sensitivity import (
    FILE,
    SensitivityRecord,
    caption_sensitivity,
    read_sensitivities,
    stays_near_zero,
)
from t2i_hpc.training.callbacks.overfitting import gap
from tests.reporting.made_up import make_run


def grid(by_caption: float, by_noise: float, rows: int = 32, columns: int = 32) -> Tensor:
    """Images that captions and noise move by so much, each pixel for itself."""
    torch.manual_seed(0)
    captions = by_caption * torch.randn(rows, 1, 3, 4, 4)
    noise = by_noise * torch.randn(1, columns, 3, 4, 4)
    return (captions + noise).flatten(0, 1)


def test_it_is_the_quotient_of_what_moves_the_pixels() -> None:
    assert caption_sensitivity(grid(0.5, 0.5), 32) == pytest.approx(1, rel=0.1)
    assert caption_sensitivity(grid(0.1, 0.5), 32) == pytest.approx(0.2, rel=0.1)
    assert caption_sensitivity(grid(0.0, 0.5), 32) == 0
    assert caption_sensitivity(grid(0.3, 0.1, 4, 6), 6) == pytest.approx(3, rel=0.3)


@pytest.mark.parametrize(
    ("images", "columns"),
    [
        (grid(1, 1, 4, 1), 1),
        (grid(1, 1, 1, 4), 4),
        (grid(1, 0, 4, 4), 4),
        (grid(1, 1, 4, 4) * float("nan"), 4),
    ],
    ids=["one column", "one row", "noise moves nothing", "NaN"],
)
def test_without_a_measure_there_is_none(images: Tensor, columns: int) -> None:
    assert caption_sensitivity(images, columns) is None


def test_a_run_warns_when_it_stays_near_zero_and_a_resumed_one_as_well(tmp_path: Path) -> None:
    record = SensitivityRecord(tmp_path)
    said = [record.add(images, 0.02) for images in (0, 100, 200)]
    assert not any("warning" in line for line in said)
    record.add(900, 0.9)  # lost with the session: the checkpoint was that of 200
    resumed = SensitivityRecord(tmp_path)
    assert "hardly move the picture" in resumed.add(300, 0.03)
    assert "warning" not in resumed.add(400, 0.3)
    assert list(read_sensitivities(tmp_path)) == [0, 100, 200, 300, 400, 900]
    assert not stays_near_zero([0.0, 0.02, 0.02])


def test_the_gap_of_held_out_images_lies_between_training_and_generated_ones() -> None:
    assert gap(1.0, 1.0, -1.0) == {"held_out_gap": 0}
    assert gap(1.0, -1.0, -1.0) == {"held_out_gap": 1}
    assert gap(1.0, 0.5, -1.0) == {"held_out_gap": 0.25}
    assert gap(0.0, 0.5, 0.0) == gap(float("nan"), 0, 0) == gap(1, float("nan"), 0) == {}


def test_the_page_draws_overfitting(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", steps=1, grids=0, scores=0)
    assert overfitting(RunRecord.read(run)) == ""
    for images in (200, 300):
        append_json_line(run / "metrics.jsonl", {"images": images, "samples": {"real_sign": 0.7}})
    html = overfitting(RunRecord.read(run))
    assert "<svg" in html
    assert "r_t" in html


def test_the_page_draws_it_and_warns(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", steps=1, grids=1, scores=0)
    assert section(RunRecord.read(run)) == ""
    values = {"0": 0.5, "1000": 0.05, "2000": 0.04, "3000": 0.06}
    (run / "samples" / FILE).write_text(json.dumps(values))
    html = section(RunRecord.read(run))
    assert "<svg" in html
    assert "Warning: the words of a caption hardly move the picture" in html
    (run / "samples" / FILE).write_text(json.dumps({**values, "4000": 0.4}))
    assert "Warning" not in section(RunRecord.read(run))
