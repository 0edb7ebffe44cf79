"""Trainings that are disturbed in every way a cluster knows, all at the same time.

Each goes on by itself and ends with the very weights of a training that nobody disturbed.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from copy import copy
from dataclasses import dataclass
from pathlib import Path

import pytest

from t2i_hpc.cluster.jobs import read_jobs
from t2i_hpc.common.files import read_json_lines
from tests.slurm.jobs import (
    DONE,
    FOUR,
    HELD,
    IMAGES,
    equal_bits,
    kill_script,
    launch,
    launched,
    log_of,
    log_text,
    state_of,
    steps_of,
    submit,
    training,
    wait_for,
    wait_until,
)
from tests.slurm.lab import Lab
from tests.support.data import make_shards
from tests.support.training import TINY, losses_of, only_run, train_tiny

CLIENTS = ("sbatch", "squeue", "scontrol", "sinfo", "srun", "scancel", "git")


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_shards(tmp_path_factory.mktemp("data"), count=24, size=80)


@pytest.fixture(scope="module")
def bare(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Lab:
    """The lab without the client of its accounting."""
    folder = tmp_path_factory.mktemp("clients")
    for name in CLIENTS:
        (folder / name).symlink_to(Path(shutil.which(name, path=lab.environment["PATH"]) or ""))
    bare = copy(lab)
    bare.environment = {**lab.environment, "PATH": str(folder)}
    return bare


@dataclass(frozen=True)
class Submitted:
    """Trainings in the queue: numbers of the jobs, and the folder of each one's run."""

    jobs: dict[str, str]
    folder: Path

    def runs(self, name: str) -> Path:
        return self.folder / name


@pytest.fixture(scope="module")
def submitted(lab: Lab, shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Submitted:
    """Submit all, and disturb those that are to be when they are at work."""
    folder = tmp_path_factory.mktemp("runs")
    length = f"engine.images={IMAGES}"
    settings = (*TINY, f"data.path={shards}", f"runs={folder / 'script'}", length)
    low = ("cluster.partition=low", "cluster.cpus_per_task=20")
    cancelled = ("cluster.partition=cancel", "cluster.cpus_per_task=20", "cluster.on_stop=chain")
    four = ("experiment=coco_ssagan", "cluster.tasks_per_node=2")
    jobs = {
        "script": submit(lab, "train_coco.sh", folder / "script", FOUR, *settings),
        "low": training(lab, shards, folder / "low", length, HELD, *low),
        "hand": training(lab, shards, folder / "hand", length, HELD),
        "chain": training(lab, shards, folder / "chain", length, HELD, "cluster.on_stop=chain"),
        "straight": training(lab, shards, folder / "straight", length, HELD, *four),
        "preempted": training(lab, shards, folder / "preempted", length, HELD, *cancelled),
        "headless": training(lab, shards, folder / "headless", length, HELD),
    }
    lab.run("scontrol", "release", ",".join(jobs.values()))
    made = Submitted(jobs, folder)
    _disturb(lab, made)
    return made


def _disturb(lab: Lab, made: Submitted) -> None:
    waiting = dict(_DISTURBANCES)

    def all_disturbed() -> bool:
        for name in [name for name in waiting if at_work(name)]:
            waiting.pop(name)(lab, made.jobs[name])
        return not waiting

    def at_work(name: str) -> bool:
        both = [name, *(["preempted"] if name == "low" else [])]
        return all(steps_of(made.runs(each)) >= 2 for each in both)

    wait_until(all_disturbed, "trainings at work", 300)


def _signal(lab: Lab, job: str) -> None:
    """Do what Slurm does before a time limit."""
    lab.run("scancel", "--signal=USR1", job)


def _preempt(lab: Lab, job: str) -> None:
    """Ask for more CPUs than are free, whatever else runs, but for those of the low job."""
    lab.run("sbatch", "--nodes=2", "--cpus-per-task=50", "--output=/dev/null", "--wrap=sleep 1")


def _requeue(lab: Lab, job: str) -> None:
    lab.run("scontrol", "requeue", job)


_DISTURBANCES: dict[str, Callable[[Lab, str], None]] = {
    "script": _signal,
    "headless": kill_script,
    "low": _preempt,  # which preempts the job called "preempted" as well
    "hand": _requeue,
    "chain": _signal,
}


@pytest.fixture(scope="module")
def here(lab: Lab, submitted: Submitted, shards: Path) -> Submitted:
    """The same trainings on this machine, undisturbed, with two and with four ranks."""
    words = (f"engine.images={IMAGES}",)
    for ranks, more in ((2, ()), (4, ("experiment=coco_ssagan",))):
        runs = submitted.runs(f"here{ranks}")
        train_tiny(shards, runs, *more, *words, task=("launch", f"cluster.processes={ranks}"))
    return submitted


def test_a_launched_job_of_four_tasks_trains_as_four_ranks_here(lab: Lab, here: Submitted) -> None:
    runs = here.runs("straight")
    wait_for(lab, here.jobs["straight"], DONE, runs)
    assert losses_of(only_run(here.runs("here4"))) == losses_of(only_run(runs))
    assert equal_bits(here.runs("here4"), runs)
    assert "on 4 ranks" in log_of(runs)


def test_a_script_that_is_signalled_goes_on(lab: Lab, here: Submitted) -> None:
    runs = here.runs("script")
    wait_for(lab, here.jobs["script"], DONE, runs)
    log = next(runs.glob("*.log")).read_text()
    assert "stopped and saved" in log
    assert "resuming at step" in log
    assert "ended with code 75: it is requeued" in log
    assert equal_bits(here.runs("here4"), runs)


@pytest.mark.parametrize("name", ["low", "hand"])
def test_a_job_that_is_taken_away_goes_on(lab: Lab, here: Submitted, name: str) -> None:
    runs = here.runs(name)
    wait_for(lab, here.jobs[name], DONE, runs)
    assert "resuming at step" in log_of(runs)
    assert equal_bits(here.runs("here2"), runs)
    restarts = lab.run("sacct", "-X", "-n", "-P", "-D", "-j", here.jobs[name], "-o", "State")
    assert restarts.split()[-1] == "COMPLETED"
    assert "FAILED" not in restarts


@pytest.mark.parametrize(("name", "state"), [("chain", "COMPLETED"), ("preempted", "PREEMPTED")])
def test_a_job_that_has_to_end_is_followed_by_another(
    lab: Lab, here: Submitted, name: str, state: str
) -> None:
    """Also in a partition with PreemptMode=CANCEL and GraceTime=0; the chain ends with the work."""
    runs, job = here.runs(name), here.jobs[name]
    wait_until(lambda: state_of(lab, job) == state, f"the end of {name}")
    successor = read_jobs(only_run(runs))[1]
    wait_for(lab, successor.job, DONE, runs)
    assert [each.follows for each in read_jobs(only_run(runs))] == ["", job]
    assert "resuming at step" in Path(successor.log).read_text()
    assert equal_bits(here.runs("here2"), runs)


def test_a_training_whose_batch_script_is_killed_requeues_itself(lab: Lab, here: Submitted) -> None:
    runs = here.runs("headless")
    wait_for(lab, here.jobs["headless"], DONE, runs)
    assert "its batch script was killed: job" in log_of(runs)
    assert "resuming at step" in log_of(runs)
    assert equal_bits(here.runs("here2"), runs)


def test_a_node_that_loses_its_power_is_survived(
    lab: Lab, bare: Lab, here: Submitted, shards: Path
) -> None:
    runs = here.runs("power")
    job = training(bare, shards, runs, f"engine.images={IMAGES}")
    wait_until(lambda: steps_of(runs) >= 3, "a training at work")
    lab.power_off("n2")
    try:
        wait_until(lambda: state_of(lab, job) == "PENDING", "a requeue", 120)
    finally:
        lab.power_on("n2")
    wait_for(lab, job, DONE, runs)
    assert "resuming at step" in log_of(runs)
    assert equal_bits(here.runs("here2"), runs)


def test_a_training_submits_its_own_evaluations(lab: Lab, shards: Path, tmp_path: Path) -> None:
    there = ("cluster=slurm", "cluster.gpus_per_node=0", "cluster.cpus_per_task=1")
    words = (*there, "evaluation=demo", "evaluation.images=8", "evaluation.shards=1", "device=cpu")
    quoted = ",".join(f'"{word}"' for word in words)
    settings = ("engine.images=8", "evaluation.every_images=8", f"evaluation.words=[{quoted}]")
    job = training(lab, shards, tmp_path, *settings)
    wait_for(lab, job, DONE, tmp_path)
    run = only_run(tmp_path)
    for record in read_jobs(run):
        wait_for(lab, record.job, DONE, tmp_path)
    scores = read_json_lines(run / "scores.jsonl")
    assert sorted(row["images"] for row in scores) == [0, 8]
    assert len(read_jobs(run)) == 3


def test_the_same_command_is_not_submitted_twice(lab: Lab, shards: Path, tmp_path: Path) -> None:
    words = (f"data.path={shards}", f"runs={tmp_path}", *TINY)
    first = launch(lab, *words, HELD)
    job = first.out.split()[1]
    second = launch(lab, *words, "engine.images=40")
    assert second.code == 2
    assert f"job {job} does this already" in second.err
    assert second.err.count("\n") == 1
    lab.run("scancel", job)


def test_a_task_of_a_job_waits_passively(lab: Lab, shards: Path, tmp_path: Path) -> None:
    """Whatever the environment of the job: a stand-in for torch tells what it finds."""
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text(
        "import os\n"
        "print('torch finds', os.environ.get('OMP_WAIT_POLICY'), flush=True)\n"
        "os._exit(2)\n"
    )
    setup = f"unset OMP_WAIT_POLICY; export PYTHONPATH={tmp_path}:$PYTHONPATH"
    words = (f"data.path={shards}", f"runs={tmp_path}", *TINY, f'cluster.setup=["{setup}"]')
    (record,) = launched(lab, tmp_path, *words)
    wait_for(lab, record.job, {"FAILED"}, tmp_path)
    assert "torch finds PASSIVE" in log_text(Path(record.log))
