"""The sbatch script on a real cluster of two nodes with two tasks each."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.slurm.lab import Lab
from tests.support.data import make_shards
from tests.support.training import TINY, losses_of, only_run, train_tiny

SCRIPT = Path(__file__).parents[2] / "slurm" / "train_coco.sh"
NODES = ("--nodes=2", "--ntasks-per-node=2", "--gpus-per-node=0", "--cpus-per-task=1")
ENDED = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL"}


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_shards(tmp_path_factory.mktemp("data"), count=24, size=80)


def submit(lab: Lab, folder: Path, *words: str) -> str:
    """Submit the script from a folder; return the job's number."""
    folder.mkdir()
    (folder / ".venv").symlink_to(Path(sys.prefix))
    settings = [*TINY, f"runs={folder}", *words]
    done = lab.run(
        "sbatch", "--parsable", f"--chdir={folder}", "--time=10", *NODES, str(SCRIPT), *settings
    )
    return done.split(";")[0]


def state_of(lab: Lab, job: str) -> str:
    return lab.run("squeue", "-h", "--states=all", "-j", job, "-o", "%T")


def wait_for(lab: Lab, job: str, states: set[str], folder: Path, seconds: float = 300) -> None:
    """Wait until a job is in one of some states.

    A job that is put back into the queue may be shown as failed for a moment.
    """
    end = time.monotonic() + seconds
    bad_since: float | None = None
    while (state := state_of(lab, job)) not in states:
        now = time.monotonic()
        bad_since = (bad_since or now) if state in ENDED else None
        if now > end or (bad_since and now - bad_since > 20):
            logs = "".join(path.read_text() for path in folder.glob("*.log"))
            pytest.fail(f"job {job} is {state}\n{logs}\n{lab.run('scontrol', 'show', 'job', job)}")
        time.sleep(0.3)


def steps_of(folder: Path) -> int:
    runs = list(folder.glob("*/metrics.jsonl"))
    return len(runs[0].read_text().splitlines()) if runs else 0


def test_four_tasks_on_two_nodes_train_as_four_ranks_here(
    lab: Lab, shards: Path, tmp_path: Path
) -> None:
    words = (f"data.path={shards}", "engine.images=20")
    job = submit(lab, tmp_path / "cluster", *words)
    experiment = ("experiment=coco_ssagan", *words[1:])
    train_tiny(shards, tmp_path / "here", *experiment, task=("launch", "cluster.processes=4"))
    wait_for(lab, job, {"COMPLETED"}, tmp_path / "cluster")
    one, other = only_run(tmp_path / "here"), only_run(tmp_path / "cluster")
    assert losses_of(one) == losses_of(other)
    weights = [
        load_file(run / f"checkpoints/{20:010d}/weights.safetensors") for run in (one, other)
    ]
    assert all(bool((weights[0][name] == weights[1][name]).all()) for name in weights[0])
    log = next((tmp_path / "cluster").glob("*.log")).read_text()
    assert "on 4 ranks" in log


def test_a_signalled_run_goes_back_into_the_queue_and_ends_the_same(
    lab: Lab, shards: Path, tmp_path: Path
) -> None:
    """What Slurm does before a time limit: USR1 to all tasks."""
    words = (f"data.path={shards}", "engine.images=160")
    straight, disturbed = tmp_path / "straight", tmp_path / "disturbed"
    job = submit(lab, disturbed, *words)
    while steps_of(disturbed) < 3:
        assert state_of(lab, job) not in ENDED
        time.sleep(0.1)
    lab.run("scancel", "--signal=USR1", job)
    wait_for(lab, job, {"PENDING", "REQUEUED"}, disturbed)
    other = submit(lab, straight, *words)
    wait_for(lab, job, {"COMPLETED"}, disturbed)
    wait_for(lab, other, {"COMPLETED"}, straight)
    log = next(disturbed.glob("*.log")).read_text()
    assert "stopped and saved" in log
    assert "resuming at step" in log
    weights = [
        load_file(only_run(folder) / f"checkpoints/{160:010d}/weights.safetensors")
        for folder in (straight, disturbed)
    ]
    assert all(bool((weights[0][name] == weights[1][name]).all()) for name in weights[0])
