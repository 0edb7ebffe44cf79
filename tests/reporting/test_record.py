"""Reading a run directory: whole, in parts, damaged, none."""

from __future__ import annotations

from pathlib import Path

import pytest

from t2i_hpc.common.errors import RunError
from t2i_hpc.evaluation.scores import score_curves
from t2i_hpc.reporting.run_record import RunRecord
from tests.reporting.made_up import CAPTIONS, add_grids, make_run, score_row


def test_a_run_is_read(tmp_path: Path) -> None:
    record = RunRecord.read(make_run(tmp_path / "run", steps=40, grids=3))
    assert record.name == "demo-1a2b3c4d"
    assert record.images == 4000
    assert [frame.images for frame in record.samples] == [0, 1000, 2000]
    assert record.captions == CAPTIONS
    assert record.setting("system.resolution") == 64
    assert record.setting("system.nothing.here") is None


def test_frames_are_in_the_order_of_training(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", grids=0)
    for images in (30_000, 0, 9_000):
        add_grids(run, images)
    (run / "samples" / "notes.png").write_bytes(b"not a frame")
    assert [frame.images for frame in RunRecord.read(run).samples] == [0, 9_000, 30_000]


def test_a_half_written_line_is_left_out(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", steps=5)
    with (run / "metrics.jsonl").open("a") as stream:
        stream.write('{"images": 600, "st')
    assert RunRecord.read(run).metrics[-1]["images"] == 500


@pytest.mark.parametrize("missing", ["run.json", "metrics.jsonl", "scores.jsonl", "captions"])
def test_missing_parts_are_no_error(tmp_path: Path, missing: str) -> None:
    run = make_run(tmp_path / "run")
    path = run / "samples" / "captions.json" if missing == "captions" else run / missing
    path.unlink()
    assert RunRecord.read(run).samples


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="there is no folder"):
        RunRecord.read(tmp_path / "nothing")


def test_no_name_is_refused() -> None:
    with pytest.raises(RunError, match="no run is named"):
        RunRecord.read(Path())


def test_the_folder_of_runs_is_refused_with_the_runs_in_it(tmp_path: Path) -> None:
    make_run(tmp_path / "demo-1a2b3c4d")
    with pytest.raises(RunError, match=r"is no run.*demo-1a2b3c4d"):
        RunRecord.read(tmp_path)


def test_an_empty_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="nothing to show yet"):
        RunRecord.read(make_run(tmp_path / "run", steps=0, grids=0, scores=0))


@pytest.mark.parametrize("name", ["run.json", "config.yaml", "samples/captions.json"])
def test_a_damaged_file_is_refused_by_name(tmp_path: Path, name: str) -> None:
    run = make_run(tmp_path / "run")
    (run / name).write_text('{"name": [')
    with pytest.raises(RunError, match=name.replace(".", r"\.") + " is damaged"):
        RunRecord.read(run)


def test_only_comparable_scores_share_a_curve() -> None:
    rows = [
        score_row(0, 90.0),
        score_row(1000, 30.0),
        score_row(2000, 40.0),
        score_row(2000, 12.0, protocol="other0000000"),
        score_row(2000, 25.0, metric="FID", n=30_000),
    ]
    curves = score_curves(rows)
    assert [(c.metric, c.n, len(c.scores)) for c in curves] == [
        ("FID", 30_000, 1),
        ("FD (EfficientNet-Lite0)", 1157, 1),
        ("FD (EfficientNet-Lite0)", 1157, 3),
    ]
    assert curves[2].best.images == 1000


def test_where_higher_is_better_the_largest_is_the_best() -> None:
    rows = [score_row(images, value, better="higher") for images, value in ((0, 2.0), (9, 7.0))]
    assert score_curves(rows)[0].best.value == 7.0


def test_a_repeated_score_counts_as_measured_last_and_nan_not_at_all() -> None:
    rows = [score_row(0, 9.0), score_row(5, 8.0), score_row(5, 7.0), score_row(9, float("nan"))]
    (curve,) = score_curves(rows)
    assert [(score.images, score.value) for score in curve.scores] == [(0, 9.0), (5, 7.0)]


def test_another_distance_than_fid_says_so() -> None:
    other, fid = score_curves([score_row(0, 1.0), score_row(0, 1.0, metric="FID", n=30)])
    assert "it is not FID" in other.caution
    assert "it is not FID" not in fid.caution
    assert "N = 30 is small" in fid.caution


def test_a_small_n_is_no_bias_of_an_accuracy() -> None:
    (curve,) = score_curves([score_row(0, 0.2, metric="top-1 retrieval", better="higher")])
    assert "biases" not in curve.caution
