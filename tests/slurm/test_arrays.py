"""Evaluations and shards as job arrays, with the job that merges them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from t2i_hpc.cluster.jobs import read_jobs
from t2i_hpc.common.files import read_json_lines
from t2i_hpc.data.manifest import Manifest
from tests.doors.trained import make_run
from tests.slurm.jobs import DONE, launch, launched, run_script, state_of, wait_for, wait_until
from tests.slurm.lab import Lab
from tests.support.data import make_image_folder, make_shards
from tests.support.training import run_door

SETTINGS = (
    "device=cpu",
    "threads=1",
    "evaluation.detector=efficientnet_lite0",
    "evaluation.images=10",
    "evaluation.batch_size=2",
    "evaluation.split=train",
)
SHARDS = 5  # one more than the lab allows in an array


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return make_run(tmp_path / "run", make_shards(tmp_path, count=12), (100,))


def test_a_killed_shard_is_all_that_is_computed_again(lab: Lab, run: Path) -> None:
    words = ("task=evaluate", f"run={run}", *SETTINGS, f"evaluation.shards={SHARDS}")
    whole = shutil.copytree(run, run.with_name("whole"))
    *shards, merge = launched(lab, run, *words, "cluster.array_parallelism=2")
    assert [record.words[-1] for record in shards] == [f"evaluation.shard={n}" for n in range(5)]
    assert [record.job.count("_") for record in shards] == [1, 1, 1, 1, 0]
    assert merge.after == (shards[0].job.partition("_")[0], shards[4].job)
    lab.run("scancel", shards[3].job)
    cache = f"evaluation.cache={whole / 'cache'}"
    done = run_door("evaluate", f"run={whole}", *SETTINGS, cache)
    assert done.returncode == 0, done.stderr
    wait_until(lambda: state_of(lab, merge.job) == "FAILED", "the merge's refusal")
    assert "shard 3 of 5 has no valid file" in Path(merge.log).read_text()
    assert not (run / "scores.jsonl").exists()

    *again, merge = launched(lab, run, *words)
    assert [record.words[-1] for record in again] == ["evaluation.shard=3"]
    wait_for(lab, merge.job, DONE, run)
    (ours,), (theirs,) = (read_json_lines(each / "scores.jsonl") for each in (run, whole))
    assert ours["value"] == pytest.approx(theirs["value"], rel=1e-9)
    assert ours["protocol"] == theirs["protocol"]


def test_parts_of_a_split_are_followed_to_their_merge(lab: Lab, tmp_path: Path) -> None:
    images = make_image_folder(tmp_path / "images", range(12))
    output = tmp_path / "shards"
    words = ("task=shards", f"images={images}", f"output={output}", "shard_samples=3", "size=40")
    done = launch(lab, *words, "cluster.parts=3", "--follow")
    assert done.code == 0, done.out
    assert "4 jobs: 4 COMPLETED" in done.out
    assert "12 samples in 4 shards" in done.out
    records = read_jobs(output)
    assert [record.words[-1] for record in records[:3]] == ["part=1/3", "part=2/3", "part=3/3"]
    assert Manifest.load(output / "train").shard_count == 4


def test_a_script_makes_shards_in_parts(lab: Lab, tmp_path: Path) -> None:
    images = make_image_folder(tmp_path / "images", range(4))
    words = (f"images={images}", f"output={tmp_path}/shards", "shard_samples=2", "split=test")
    run_script(lab, "build_shards.sh", *words, "cluster.parts=2")
    assert [record.task for record in read_jobs(tmp_path / "shards")] == ["shards"] * 3
    wait_until((tmp_path / "shards/test/manifest.json").exists, "a split")
    assert Manifest.load(tmp_path / "shards/test").sample_count == 4


def test_a_script_scores_in_shards(lab: Lab, run: Path) -> None:
    run_script(lab, "evaluate.sh", f"run={run}", *SETTINGS, "evaluation.shards=2")
    wait_until((run / "scores.jsonl").exists, "a score")
    (row,) = read_json_lines(run / "scores.jsonl")
    assert row["n"] == 10
