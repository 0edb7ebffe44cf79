"""Which checkpoints stay."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from t2i_hpc.common.files import append_json_line
from t2i_hpc.config.engine import CheckpointConfig
from t2i_hpc.runs.checkpoint import read_state
from t2i_hpc.runs.inventory import ranking
from t2i_hpc.runs.layout import list_checkpoints
from t2i_hpc.training.checkpoints.saving import prune_checkpoints
from tests.support.checkpoints import make_checkpoints


@pytest.fixture
def run(tmp_path: Path) -> Path:
    make_checkpoints(tmp_path, 0, 4, 8, 12, 16, 20)
    return tmp_path


def score(run: Path, images: int, value: float, **more: Any) -> None:
    row = {"images": images, "metric": "FID", "value": value, "n": 100, "protocol": "p"}
    append_json_line(run / "scores.jsonl", row | more)


def test_the_newest_and_the_milestones_stay(run: Path) -> None:
    prune_checkpoints(run, CheckpointConfig(keep=2, milestones=10))
    assert list_checkpoints(run) == [0, 12, 16, 20]
    prune_checkpoints(run, CheckpointConfig(keep=1))
    assert list_checkpoints(run) == [20]
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["0000000020"]


@pytest.mark.parametrize(("count", "kept"), [(0, [20]), (1, [4, 20]), (2, [4, 12, 20])])
def test_the_best_stay(run: Path, count: int, kept: list[int]) -> None:
    for images, value in ((0, 300.0), (4, 20.0), (8, 90.0), (12, 30.0), (20, float("nan"))):
        score(run, images, value)
    prune_checkpoints(run, CheckpointConfig(keep=1, keep_best=count))
    assert list_checkpoints(run) == kept


def test_the_best_of_those_that_are_there(run: Path) -> None:
    score(run, 2, 1.0)  # deleted long ago
    score(run, 8, 50.0)
    score(run, 12, 60.0)
    prune_checkpoints(run, CheckpointConfig(keep=1, keep_best=1))
    assert list_checkpoints(run) == [8, 20]


def test_some_metrics_are_better_where_they_are_higher(run: Path) -> None:
    score(run, 4, 0.1, metric="top-1 retrieval", better="higher")
    score(run, 8, 0.3, metric="top-1 retrieval", better="higher")
    assert [row.images for row in ranking(run)] == [8, 4]


def test_scores_of_other_protocols_and_sizes_do_not_mix(run: Path) -> None:
    score(run, 4, 5.0, n=10)  # few images: another scale
    score(run, 8, 70.0, n=1000)
    score(run, 12, 60.0, n=1000, protocol="other")
    score(run, 16, 80.0, n=1000, protocol="other")
    assert [row.images for row in ranking(run)] == [12, 16]
    assert [row.images for row in ranking(run, "KID")] == []
    score(run, 4, 1.0, metric="KID", n=50)
    assert [row.images for row in ranking(run, "KID")] == [4]


def test_a_score_measured_again_counts_as_measured_last(run: Path) -> None:
    score(run, 4, 5.0)
    score(run, 8, 6.0)
    score(run, 4, 7.0)
    assert [(row.images, row.value) for row in ranking(run)] == [(8, 6.0), (4, 7.0)]


def test_a_score_of_other_weights_is_not_this_checkpoints(run: Path) -> None:
    score(run, 4, 5.0, checkpoint="0" * 64)
    score(run, 8, 6.0, checkpoint=read_state(run, 8).sha256)
    assert [row.images for row in ranking(run)] == [8]


def test_lines_that_are_no_scores_are_passed_over(run: Path) -> None:
    with (run / "scores.jsonl").open("w") as stream:
        stream.write('{"images": "4"}\n[1]\n{"images": 4, "metric": 3, "value": 1}\nhalf')
    assert ranking(run) == []
