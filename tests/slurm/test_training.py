"""Trainings that are interrupted in every way a cluster knows, each several times.

Each resumes by itself and ends with the very weights of an uninterrupted run.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from copy import copy
from dataclasses import dataclass
from pathlib import Path

import pytest

from t2i_hpc.cluster.jobs import JobRecord, read_jobs
from t2i_hpc.cluster.local_processes import free_port
from t2i_hpc.common.files import read_json_lines
from tests.slurm.jobs import (
    FOUR,
    HELD,
    IMAGES,
    SCRIPTS,
    equal_bits,
    kill_script,
    launch,
    launched,
    log_text,
    state_of,
    submit,
    training,
    wait_for,
    wait_until,
)
from tests.slurm.lab import Lab
from tests.slurm.scenarios import Interruption, Scenario, run_scenarios, train_here
from tests.support.data import make_shards
from tests.support.preloaded import nursery
from tests.support.training import TINY, only_run

CLIENTS = ("sbatch", "squeue", "scontrol", "sinfo", "srun", "scancel", "git")
_THERE = ("cluster=slurm", "cluster.gpus_per_node=0", "cluster.cpus_per_task=1", "device=cpu")
_DEMO = (*_THERE, "evaluation=demo", "evaluation.images=8", "evaluation.shards=1")
_QUOTED = ",".join(f'"{each}"' for each in _DEMO)
EVALUATIONS = ("engine.images=8", "evaluation.every_images=8", f"evaluation.overrides=[{_QUOTED}]")


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


def _signal(lab: Lab, job: str) -> None:
    """Do what Slurm does before a time limit."""
    lab.run("scancel", "--signal=USR1", job)


def _preempt(lab: Lab, job: str) -> None:
    """Ask for more CPUs than are free, whatever else runs, but for those of the job."""
    lab.run("sbatch", "--nodes=2", "--cpus-per-task=50", "--output=/dev/null", "--wrap=sleep 1")


def _requeue(lab: Lab, job: str) -> None:
    lab.run("scontrol", "requeue", job)


def _cut_power(lab: Lab, job: str) -> None:
    lab.power_off("n2")
    try:
        wait_until(lambda: state_of(lab, job) == "PENDING", "a requeue")
    finally:
        lab.power_on("n2")


def _leave_alone(lab: Lab, job: str) -> None:
    """Nothing: it ends this session by itself."""


def _cancel(lab: Lab, job: str) -> None:
    lab.run("scancel", job)


def _submit_torchrun(lab: Lab, runs: Path, *arguments: str) -> str:
    """Submit the script's second way for two minutes, without an end, on one CPU."""
    text = (SCRIPTS / "train_coco.sh").read_text()
    text = re.sub(r"^srun --cpus.*\n", "", text, flags=re.MULTILINE)
    text = re.sub(r"^#(   .*)$", r"\1", text, flags=re.MULTILINE)
    text = re.sub(r"^#SBATCH --signal.*\n", "", text, flags=re.MULTILINE)
    text = text.replace("--nproc-per-node=4", "--nproc-per-node=2")
    cpu = min(os.sched_getaffinity(0))
    text = text.replace(
        "python -m torch.distributed", f"taskset -c {cpu} python -m torch.distributed"
    )
    script = runs.with_suffix(".sh")
    script.write_text(text.replace(":29500", f":{free_port()}"))
    where = ("--nodes=1", "--nodelist=n1", "--ntasks-per-node=1", "--time=2", *FOUR[2:4])
    return submit(lab, str(script), runs, where, f"runs={runs}", *arguments)


@dataclass(frozen=True)
class Finished:
    """Trainings that are over, each in a folder of its own."""

    folder: Path

    def runs(self, name: str) -> Path:
        return self.folder / name

    def jobs(self, name: str) -> list[JobRecord]:
        return [each for each in read_jobs(only_run(self.runs(name))) if each.task == "train"]

    def log(self, name: str) -> str:
        """Return what all jobs of a training printed, oldest first."""
        logs = [Path(each.log) for each in self.jobs(name)] or [*self.runs(name).glob("*.log")]
        return "".join(log_text(path) for path in logs)


@pytest.fixture(scope="module")
def finished(
    lab: Lab, bare: Lab, shards: Path, tmp_path_factory: pytest.TempPathFactory
) -> Finished:
    """Run trainings of the same length: one uninterrupted here, others interrupted in all ways."""
    folder = tmp_path_factory.mktemp("runs")
    data, length = f"data.path={shards}", f"engine.images={IMAGES}"
    low, cancel = (
        (f"cluster.partition={name}", "cluster.cpus_per_task=20") for name in ("low", "cancel")
    )

    def scenario(
        name: str, submit: Callable[[Path], str], *interruptions: Interruption
    ) -> Scenario:
        return Scenario(folder / name, submit, interruptions)

    def launched_with(*arguments: str, on: Lab = lab) -> Callable[[Path], str]:
        return lambda runs: training(on, shards, runs, length, *arguments)

    def script(runs: Path) -> str:
        return submit(lab, "train_coco.sh", runs, FOUR, data, f"runs={runs}", *TINY, length)

    def torchrun(runs: Path) -> str:
        return _submit_torchrun(lab, runs, data, *TINY, "engine.images=4000000")

    run_scenarios(
        lab,
        scenario("requeued", launched_with(*low), kill_script, _requeue, _preempt),
        scenario("script", script, _signal),
    )
    chain = launched_with(*cancel, "cluster.on_stop=chain")
    run_scenarios(
        lab,
        scenario("torchrun", torchrun, _leave_alone, _cancel),
        scenario("chained", chain, _signal, _preempt),
        scenario("evaluated", launched_with(*EVALUATIONS)),
        scenario("power", launched_with(on=bare), _cut_power),  # alone on its second node
    )
    with nursery() as home:
        train_here(home, 2, folder / "here2", data, *TINY, length)
        train_here(home, 4, folder / "here4", data, *TINY, length, "experiment=coco_ssagan")
    return Finished(folder)


def test_a_training_that_is_interrupted_three_times_resumes(lab: Lab, finished: Finished) -> None:
    """Its batch script is killed, a person requeues it, another job preempts it."""
    (record,) = finished.jobs("requeued")
    log = finished.log("requeued")
    assert f"its batch script was killed: job {record.job}" in log
    assert log.count("resuming at step") == 3
    assert equal_bits(finished.runs("here2"), finished.runs("requeued"))
    ends = lab.run("sacct", "-X", "-n", "-P", "-D", "-j", record.job, "-o", "State").split()
    assert (len(ends), ends[-1]) == (4, "COMPLETED")
    assert "FAILED" not in ends


def test_a_script_of_four_tasks_that_is_signalled_resumes(finished: Finished) -> None:
    log = finished.log("script")
    for phrase in ("on 4 ranks", "stopped and saved", "resuming at step"):
        assert phrase in log
    assert "ended with code 75: it is requeued" in log
    assert equal_bits(finished.runs("here4"), finished.runs("script"))


def test_a_job_that_has_to_end_is_resumed_by_its_successor(lab: Lab, finished: Finished) -> None:
    """Also in a partition with PreemptMode=CANCEL and GraceTime=0; the chain ends with the work."""
    jobs = [record.job for record in finished.jobs("chained")]
    states = [state_of(lab, job) for job in jobs]
    assert states == ["COMPLETED", "PREEMPTED", "COMPLETED"], finished.log("chained")
    assert [each.predecessor for each in finished.jobs("chained")] == ["", *jobs[:2]]
    assert finished.log("chained").count("resuming at step") == 2
    assert equal_bits(finished.runs("here2"), finished.runs("chained"))


def test_a_node_that_loses_its_power_is_survived(finished: Finished) -> None:
    """In a job that finds no more than Slurm's clients, and none of its accounting."""
    assert "resuming at step" in finished.log("power")
    assert equal_bits(finished.runs("here2"), finished.runs("power"))


def test_torchrun_stops_before_a_time_limit_that_slurm_alone_knows(finished: Finished) -> None:
    """The second way of the script; Slurm 22.05 sets no SLURM_JOB_END_TIME."""
    log = finished.log("torchrun")
    assert re.search(r"time limit in \d+ s: stopping to save", log), log
    assert "resuming at step" in log


def test_a_training_submits_its_own_evaluations(finished: Finished) -> None:
    run = only_run(finished.runs("evaluated"))
    scores = read_json_lines(run / "scores.jsonl")
    assert sorted(row["images"] for row in scores) == [0, 8], finished.log("evaluated")
    assert len(read_jobs(run)) == 3


def test_the_same_command_is_not_submitted_twice(lab: Lab, shards: Path, tmp_path: Path) -> None:
    arguments = (f"data.path={shards}", f"runs={tmp_path}", *TINY)
    (first,) = launched(lab, tmp_path, *arguments, HELD)
    second = launch(lab, *arguments, "engine.images=40")
    assert second.code == 2
    assert f"job {first.job} does this already" in second.err
    assert second.err.count("\n") == 1
    lab.run("scancel", first.job)


def test_a_task_of_a_job_waits_passively(lab: Lab, shards: Path, tmp_path: Path) -> None:
    """Whatever the environment of the job: a stand-in for torch prints what it finds."""
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text(
        "import os\n"
        "print('torch finds', os.environ.get('OMP_WAIT_POLICY'), flush=True)\n"
        "os._exit(2)\n"
    )
    setup = f"unset OMP_WAIT_POLICY; export PYTHONPATH={tmp_path}:$PYTHONPATH"
    arguments = (f"data.path={shards}", f"runs={tmp_path}", *TINY, f'cluster.setup=["{setup}"]')
    (record,) = launched(lab, tmp_path, *arguments)
    wait_for(lab, record.job, {"FAILED"}, tmp_path)
    assert "torch finds PASSIVE" in log_text(Path(record.log))
