"""Evaluations that a training asks for on its way."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from t2i_hpc.cluster.local_processes import without_launcher
from t2i_hpc.common.files import append_json_line, read_json_lines
from t2i_hpc.config.engine import CheckpointConfig
from t2i_hpc.runs.checkpoint import TrainingProgress
from t2i_hpc.runs.layout import list_checkpoints
from t2i_hpc.training.callbacks.background_evaluation import (
    EvaluationRequests,
    waiting_for_scores,
)
from t2i_hpc.training.checkpoints.saving import prune_checkpoints
from t2i_hpc.training.progress import RunOutput, Silence
from tests.support.checkpoints import make_checkpoints
from tests.support.data import make_shards
from tests.support.training import only_run, train_tiny

WORDS = '["evaluation=demo","evaluation.images=8","evaluation.shards=1"]'


class Recorder:
    """Takes note of what is asked of it."""

    def __init__(self) -> None:
        self.started: list[int] = []
        self.closed = False

    def start(self, images: int) -> str:
        self.started.append(images)
        return "started"

    def busy(self) -> bool:
        return False

    def close(self, say: Callable[[str], None]) -> None:
        self.closed = True


def score(run: Path, images: int) -> None:
    append_json_line(run / "scores.jsonl", {"images": images, "metric": "FID", "value": 1.0})


def test_what_waits_for_its_score_is_kept_and_asked_again(tmp_path: Path) -> None:
    make_checkpoints(tmp_path, 0, 4, 8, 12)
    files, first = RunOutput(tmp_path, Silence()), Recorder()
    evaluations = EvaluationRequests(files, 4, 2, first)
    assert [n for n in range(2, 14, 2) if evaluations.due(TrainingProgress(n, 1))] == [4, 8, 12]
    for images in (0, 4, 8):
        evaluations.request(images)
    evaluations.close()
    score(tmp_path, 4)
    prune_checkpoints(tmp_path, CheckpointConfig(keep=1, keep_best=0))
    assert list_checkpoints(tmp_path) == [0, 8, 12]
    again = Recorder()
    EvaluationRequests(files, 4, 2, again)
    assert (first.started, first.closed) == ([0, 4, 8], True)
    assert (again.started, again.closed) == ([0, 8], False)


def test_evaluations_that_always_fail_do_not_fill_the_disk(tmp_path: Path) -> None:
    evaluations = EvaluationRequests(RunOutput(tmp_path, Silence()), 1, 1, Recorder())
    for images in range(20):
        evaluations.request(images)
    assert waiting_for_scores(tmp_path) == [16, 17, 18, 19]


def test_a_training_scores_itself(tmp_path: Path) -> None:
    shards = make_shards(tmp_path / "data", count=24, size=80)
    arguments = ("evaluation.every_images=8", f"evaluation.overrides={WORDS}", "engine.images=12")
    ranks = ("launch", "cluster.processes=2")
    said = train_tiny(shards, tmp_path / "runs", *arguments, task=ranks).stdout
    run = only_run(tmp_path / "runs")
    scores = {row["images"]: row["value"] for row in read_json_lines(run / "scores.jsonl")}
    assert sorted(scores) == [0, 8, 12]
    assert waiting_for_scores(run) == []
    assert "evaluation of 8 images" in said
    assert "failed" not in said
    board = EventAccumulator(str(run / "tensorboard"))
    board.Reload()
    tags = [tag for tag in board.Tags()["scalars"] if tag.startswith("scores/FD")]
    assert len(tags) == 1, (board.Tags(), said)
    points = {event.step: event.value for event in board.Scalars(tags[0])}
    assert points == pytest.approx(scores)


def test_a_failed_evaluation_is_told_and_the_training_is_done(tmp_path: Path) -> None:
    shards = make_shards(tmp_path / "data", count=24, size=80)
    arguments = ("evaluation.every_images=8", 'evaluation.overrides=["evaluation.images=1"]')
    said = train_tiny(shards, tmp_path / "runs", *arguments, "engine.images=4").stdout
    assert "the evaluation of 4 images failed (2)" in said
    log = only_run(tmp_path / "runs") / "jobs/evaluation-0000000004.log"
    assert "evaluation.images=1 is too small" in log.read_text()


def test_an_evaluation_is_no_rank_of_the_training() -> None:
    kept = {"SLURM_CONF": "/etc/slurm.conf", "SLURM_JWT": "x", "SLURM_CLUSTERS": "a", "HOME": "/h"}
    outer = {**kept, "SLURM_JOB_ID": "1", "SLURM_CLUSTER_NAME": "a", "RANK": "3"}
    assert without_launcher(outer) == kept
