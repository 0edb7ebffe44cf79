"""DeepSpeed on two nodes: launched and by a script, disturbed, and equal to four ranks here."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.slurm.jobs import (
    DONE,
    FOUR,
    HELD,
    IMAGES,
    equal_bits,
    kill_rank,
    steps_of,
    submit,
    training,
    wait_for,
    wait_until,
)
from tests.slurm.lab import Lab
from tests.support.data import make_shards
from tests.support.training import TINY, only_run, train_tiny

ZERO = ("engine=deepspeed", "engine.zero_stage=1", f"engine.images={IMAGES}")
COCO = "experiment=coco_ssagan"


@pytest.fixture(scope="module")
def folder(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run all three: "launched", whose last rank is killed, "script", signalled, and "here"."""
    folder = tmp_path_factory.mktemp("runs")
    shards = make_shards(tmp_path_factory.mktemp("data"), count=24, size=80)
    launched, script = folder / "launched", folder / "script"
    there = (f"data.path={shards}", f"runs={script}", *TINY)
    two = ("cluster.tasks_per_node=2", COCO)
    first = training(lab, shards, launched, HELD, *two, *ZERO)
    second = submit(lab, "train_coco.sh", script, FOUR, *there, *ZERO)
    lab.run("scontrol", "release", f"{first},{second}")
    wait_until(lambda: steps_of(launched) >= 2, "the launched training at work", 300)
    kill_rank(lab, first, 3)
    wait_until(lambda: steps_of(script) >= 2, "the script's training at work", 300)
    lab.run("scancel", "--signal=USR1", second)
    train_tiny(shards, folder / "here", COCO, *ZERO, task=("launch", "cluster.processes=4"))
    wait_for(lab, first, DONE, launched)
    wait_for(lab, second, DONE, script)
    return folder


@pytest.mark.parametrize(("name", "code"), [("launched", 137), ("script", 75)])
def test_a_disturbed_training_resumes_and_is_equal_to_four_ranks_here(
    folder: Path, name: str, code: int
) -> None:
    run = only_run(folder / name)
    (log,) = [*(folder / name).glob("*.log"), *run.glob("jobs/*_0_log.out")]
    text = log.read_text()
    assert "on 4 ranks" in text
    assert f"ended with code {code}: it is requeued" in text
    assert "resuming at step" in text
    assert equal_bits(folder / "here", folder / name)
