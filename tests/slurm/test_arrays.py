"""Evaluations and shards as job arrays, with the job that merges them."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from t2i_hpc.cluster.jobs import read_jobs
from t2i_hpc.common.files import read_json_lines
from t2i_hpc.data.format.manifest import Manifest
from tests.commands.trained import make_run
from tests.slurm.jobs import (
    DONE,
    HELD,
    detail,
    launched,
    run_script,
    state_of,
    wait_for,
    wait_until,
)
from tests.slurm.lab import Lab
from tests.support.data import make_image_folder, make_shards
from tests.support.training import run_task

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
    """Submitted by the script, and once more by launch."""
    settings = (f"run={run}", *SETTINGS, f"evaluation.shards={SHARDS}")
    whole = shutil.copytree(run, run.with_name("whole"))
    run_script(lab, "evaluate.sh", *settings, "cluster.array_parallelism=2")
    *shards, merge = read_jobs(run)
    assert [record.arguments[-1] for record in shards] == [
        f"evaluation.shard={n}" for n in range(5)
    ]
    assert [record.job.count("_") for record in shards] == [1, 1, 1, 1, 0]
    assert merge.after == (shards[0].job.partition("_")[0], shards[4].job)
    lab.run("scancel", shards[3].job)
    cache = f"evaluation.cache={whole / 'cache'}"
    done = run_task("evaluate", f"run={whole}", *SETTINGS, cache)
    assert done.returncode == 0, done.stderr
    wait_until(lambda: state_of(lab, merge.job) == "FAILED", "the merge's refusal")
    assert "shard 3 of 5 has no valid file" in Path(merge.log).read_text()
    assert not (run / "scores.jsonl").exists()

    *again, merge = launched(lab, run, "task=evaluate", *settings)
    assert [record.arguments[-1] for record in again] == ["evaluation.shard=3"]
    wait_for(lab, merge.job, DONE, run)
    (ours,), (theirs,) = (read_json_lines(each / "scores.jsonl") for each in (run, whole))
    assert ours["value"] == pytest.approx(theirs["value"], rel=1e-9)
    assert (ours["n"], ours["protocol"]) == (10, theirs["protocol"])


def test_a_merge_that_waits_waits_for_new_shards_as_well(lab: Lab, run: Path) -> None:
    arguments = ("task=evaluate", f"run={run}", *SETTINGS, "evaluation.shards=2", HELD)
    first, second, merge = launched(lab, run, *arguments)
    lab.run("scancel", second.job)
    changed = {record.job: record for record in launched(lab, run, *arguments)}
    known = changed.pop(merge.job).after
    (again,) = changed.values()
    assert again.arguments == second.arguments
    awaited = detail(lab, merge.job, "Dependency")
    lab.run("scancel", first.job, again.job, merge.job)
    assert {first.job.partition("_")[0], again.job} <= set(re.findall(r"\d+", awaited))
    assert known == (first.job, again.job)


def test_build_partitions_are_followed_to_their_merge(lab: Lab, tmp_path: Path) -> None:
    """By the script."""
    images = make_image_folder(tmp_path / "images", range(12))
    output = tmp_path / "shards"
    arguments = (f"images={images}", f"output={output}", "shard_samples=3", "size=40")
    said = run_script(lab, "build_shards.sh", *arguments, "cluster.build_partitions=3", "--follow")
    assert "4 jobs: 4 COMPLETED" in said
    assert "12 samples in 4 shards" in said
    records = read_jobs(output)
    assert [record.arguments[-1] for record in records[:3]] == [
        "partition=1/3",
        "partition=2/3",
        "partition=3/3",
    ]
    assert Manifest.load(output / "train").shard_count == 4
