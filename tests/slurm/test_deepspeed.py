"""DeepSpeed launched on one node and by a script on two, interrupted; two ranks here."""

from __future__ import annotations

from pathlib import Path

import pytest

from t2i_hpc.runs.layout import list_checkpoints
from tests.slurm.jobs import FOUR, equal_bits, kill_rank, submit, training, wait_until
from tests.slurm.lab import Lab
from tests.slurm.scenarios import Scenario, run_scenarios, train_here
from tests.support.data import make_shards
from tests.support.preloaded import nursery
from tests.support.training import TINY, only_run

TWO = [each.replace("--ntasks-per-node=2", "--ntasks-per-node=1") for each in FOUR]
NODE = ("cluster.nodes=1", "cluster.tasks_per_node=2")
SETTINGS = (
    "experiment=coco_ssagan",
    "engine=deepspeed",
    "engine.images=64",
    "engine.checkpoint.every_images=8",  # a killed rank's moments are nowhere else
)


@pytest.fixture(scope="module")
def folder(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run all three: "launched", whose last rank is killed, "script", signalled, and "here"."""
    folder = tmp_path_factory.mktemp("runs")
    shards = make_shards(tmp_path_factory.mktemp("data"), count=24, size=80)
    data = f"data.path={shards}"

    def launched(runs: Path) -> str:
        return training(lab, shards, runs, *NODE, *SETTINGS)

    def script(runs: Path) -> str:
        return submit(lab, "train_coco.sh", runs, TWO, data, f"runs={runs}", *TINY, *SETTINGS)

    def kill(lab: Lab, job: str) -> None:
        run = only_run(folder / "launched")
        wait_until(lambda: bool(list_checkpoints(run)), "a checkpoint")
        kill_rank(lab, job, 1)

    def signal(lab: Lab, job: str) -> None:
        lab.run("scancel", "--signal=USR1", job)

    run_scenarios(lab, Scenario(folder / "launched", launched, (kill,)))
    run_scenarios(lab, Scenario(folder / "script", script, (signal,)))
    with nursery("deepspeed") as home:
        train_here(home, 2, folder / "here", data, *TINY, *SETTINGS)
    return folder


@pytest.mark.parametrize(("name", "code"), [("launched", 137), ("script", 75)])
def test_an_interrupted_training_resumes_and_is_equal_to_two_ranks_here(
    folder: Path, name: str, code: int
) -> None:
    run = only_run(folder / name)
    (log,) = [*(folder / name).glob("*.log"), *run.glob("jobs/*_0_log.out")]
    text = log.read_text()
    for phrase in ("on 2 ranks", f"ended with code {code}: it is requeued", "resuming at step"):
        assert phrase in text, text
    assert equal_bits(folder / "here", folder / name)
