"""Everything that ends a job while its task runs: each time the work resumes by itself.

The tasks are small shell scripts; the lines around them are those of every batch script.
"""

from __future__ import annotations

import dataclasses
import os
import shlex
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from t2i_hpc.cluster.jobs import JobRecord, read_jobs, record_jobs
from t2i_hpc.cluster.slurm.submission import AFTER, BEFORE, BESIDE, job_line
from t2i_hpc.config.cluster import ClusterConfig
from tests.slurm.jobs import DONE, detail, kill_script, state_of, wait_for, wait_until
from tests.slurm.lab import Lab

SAVES = "trap 'sleep 60; exit 75' TERM; echo at work; sleep 600 & wait"  # longer than KillWait
RESUMED = 'if [ -n "${SLURM_RESTART_COUNT:-}" ]; then echo resumed; exit 0; fi'
ELEMENTS = """
case $SLURM_ARRAY_TASK_ID in
0) exit 0 ;;
3) if [ -n "${SLURM_RESTART_COUNT:-}" ]; then exit 0; fi; LOSSES; exit 76 ;;
esac
sleep 5
"""
LOSSES = """
import os, pathlib, sys
from t2i_hpc.runs.sessions import job_of, write_begin, write_end
run, job = pathlib.Path(sys.argv[1]), job_of(os.environ)
for _ in range(2):
    begin = write_begin(run, job=job, restart=0, hosts=("n1", "n2"), ranks=2, pid=1, images=0)
    write_end(run, begin, "lost", 0, lost_hosts=("n2",))
"""


@dataclass(frozen=True)
class Script:
    """A shell script as a job's task, recorded as `launch` does.

    Attributes:
        folder: of the work.
        task: the script; a job that resumes it runs `shards verify`, which ends with code 2.
        on_stop: as in the configuration of clusters.
        elements: of an array; 0: a single job.
        after: the job that it waits for.
    """

    folder: Path
    task: str
    on_stop: str = "requeue"
    elements: int = 0
    after: str = ""

    def submit(self, lab: Lab, *options: str) -> str:
        """Submit it; return its number."""
        self.folder.mkdir(exist_ok=True)
        script = self.folder / "script.sh"
        script.write_text("\n".join(self._lines()))
        arguments = ["--parsable", "--hold", "--requeue", "--open-mode=append", "--time=10"]
        arguments += [f"--array=0-{self.elements - 1}"] if self.elements else []
        arguments += [f"--dependency=afterany:{self.after}"] if self.after else []
        job = lab.run("sbatch", *arguments, *options, str(script))
        elements = [f"{job}_{number}" for number in range(self.elements)]
        record_jobs(self.folder, [self._record(each) for each in elements or [job]])
        lab.run("scontrol", "release", job)
        return job

    def _lines(self) -> tuple[str, ...]:
        name = "%A_%a" if self.elements else "%j"
        return (
            "#!/bin/bash",
            f"#SBATCH --output={self.folder}/log-{name}",
            job_line(sys.executable, shlex.quote(str(self.folder))),
            *BEFORE,
            f"srun bash -c {shlex.quote(self.task)}{BESIDE}",
            *AFTER,
        )

    def _record(self, job: str) -> JobRecord:
        small: dict[str, Any] = {"gpus_per_node": 0, "cpus_per_task": 1, "time": "5"}
        cluster = ClusterConfig(name="slurm", on_stop=self.on_stop, **small)
        return JobRecord(
            job,
            "x",
            "shards",
            ("verify", str(self.folder)),
            str(self.folder),
            "log",
            dataclasses.asdict(cluster),
            "2026-11-28",
            after=(self.after,) if self.after else (),
        )


def said(folder: Path, job: str) -> str:
    path = folder / f"log-{job}"
    return path.read_text() if path.exists() else ""


def test_an_element_of_an_array_that_stops_is_requeued_alone(lab: Lab, tmp_path: Path) -> None:
    """The last element has the number of the whole array; it lost the node n2 twice."""
    folder, losses = tmp_path / "run", tmp_path / "losses.py"
    losses.write_text(LOSSES)
    task = ELEMENTS.replace("LOSSES", f"{sys.executable} {losses} {folder}")
    array = Script(folder, task, elements=4).submit(lab)
    jobs = [f"{array}_{number}" for number in range(4)]
    for job in jobs:
        wait_for(lab, job, DONE, folder)
    assert [detail(lab, job, "Restarts") for job in jobs] == ["0", "0", "0", "1"]
    excluded = [detail(lab, job, "ExcNodeList") for job in jobs]
    assert excluded == ["(null)", "(null)", "(null)", "n2"]
    assert f"job {jobs[3]} ended with code 76: it is requeued" in said(folder, jobs[3])


@dataclass(frozen=True)
class Interrupted:
    """A job that was ended, and its folder."""

    job: str
    folder: Path


KINDS = [f"{end} {on_stop}" for end in ("limit", "preempted") for on_stop in ("requeue", "chain")]
KILLED = "killed chain"
BUILD = "killed requeue"
WHERE = {
    "limit": (),
    "preempted": ("--partition=cancel", "--cpus-per-task=20"),
    "killed": (),
}


def building(folder: Path) -> str:
    """Return a shell script that builds shards of captions which never come."""
    captions = folder.with_name("captions")
    os.mkfifo(captions)
    job = f"{sys.executable} -m t2i_hpc.cluster.slurm.task {folder} shards"
    arguments = f"source=coco images={folder} captions={captions} output={folder}/shards"
    return f"{RESUMED}; echo builds; exec {job} {arguments}"


@pytest.fixture(scope="module")
def ended(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Interrupted]:
    """Jobs whose time limit is reached, that another preempts, or whose script is killed."""
    made: dict[str, Interrupted] = {}
    for kind in [*KINDS, KILLED, BUILD]:
        end, on_stop = kind.split()
        folder = tmp_path_factory.mktemp("ends") / "run"
        task = building(folder) if kind == BUILD else f"{RESUMED}; {SAVES}"
        job = Script(folder, task, on_stop).submit(lab, *WHERE[end])
        made[kind] = Interrupted(job, folder)
    for kind, each in made.items():
        wait_until(partial(is_at_work, each), f"work of {kind}")
    lab.run("sbatch", "--nodes=2", "--cpus-per-task=50", "--output=/dev/null", "--wrap=sleep 1")
    for kind in ("limit requeue", "limit chain"):
        lab.run("scontrol", "update", f"JobId={made[kind].job}", "EndTime=now+1seconds")
    for kind in (KILLED, BUILD):
        kill_script(lab, made[kind].job)
    return made


def is_at_work(each: Interrupted) -> bool:
    captions = each.folder.with_name("captions")
    return is_read(captions) if captions.exists() else "at work" in said(each.folder, each.job)


def is_read(pipe: Path) -> bool:
    """Whether a process reads a pipe; it waits for ever, since the other end is left open."""
    try:
        os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)
    except OSError:  # nobody does
        return False
    return True


@pytest.mark.parametrize("kind", [*(kind for kind in KINDS if "requeue" in kind), BUILD])
def test_a_job_that_slurm_ends_while_it_saves_is_requeued(
    lab: Lab, ended: dict[str, Interrupted], kind: str
) -> None:
    job, folder = ended[kind].job, ended[kind].folder
    wait_for(lab, job, DONE, folder)
    log = said(folder, job)
    assert f"job {job} is requeued" in log
    assert log.rstrip().endswith("resumed")
    assert detail(lab, job, "Restarts") == "1"


@pytest.mark.parametrize("kind", [*(kind for kind in KINDS if "chain" in kind), KILLED])
def test_a_job_that_slurm_ends_while_it_saves_has_a_successor(
    lab: Lab, ended: dict[str, Interrupted], kind: str
) -> None:
    first, successor, *_ = read_jobs(ended[kind].folder)
    assert successor.predecessor == first.job == ended[kind].job
    wait_until(lambda: state_of(lab, successor.job) == "FAILED", "the successor's own end")
    assert "holds no split" in Path(successor.log).read_text()
    assert [each.job for each in read_jobs(ended[kind].folder)] == [first.job, successor.job]


STALE_END = """
import ctypes, glob, sys
(library,) = glob.glob("/usr/lib/*/slurm*/libslurmfull.so")
slurm = ctypes.CDLL(library, mode=ctypes.RTLD_GLOBAL)
slurm.slurm_init(None)
sys.exit(slurm.slurm_complete_job(ctypes.c_uint32(int(sys.argv[1])), ctypes.c_uint32(1 << 8)))
"""


def test_a_job_that_slurm_takes_for_ended_is_requeued(lab: Lab, tmp_path: Path) -> None:
    """As where a busy controller handles the last message of an earlier start too late."""
    folder = tmp_path / "run"
    job = Script(folder, f"{RESUMED}; {SAVES}").submit(lab)
    wait_until(lambda: "at work" in said(folder, job), "it works")
    lab.run(sys.executable, "-c", STALE_END, job)
    wait_for(lab, job, DONE, folder)
    assert f"job {job} is requeued" in said(folder, job)


@pytest.mark.parametrize("code", [0, 3])
def test_a_chain_ends_with_the_work(lab: Lab, tmp_path: Path, code: int) -> None:
    folder = tmp_path / "run"
    job = Script(folder, f"exit {code}", "chain").submit(lab)
    wait_until(lambda: state_of(lab, job) in ("COMPLETED", "FAILED"), "its end")
    assert "resumes job" in said(folder, job)
    assert [record.job for record in read_jobs(folder)] == [job]
    assert str(int(job) + 1) not in lab.run("squeue", "-h", "-o", "%i").split()
    assert not list((folder / "jobs").glob(f"{int(job) + 1}*"))


def test_a_job_that_is_cancelled_takes_its_successor_along(lab: Lab, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    job = Script(folder, SAVES.replace("60", "1"), "chain").submit(lab)
    wait_until(lambda: "at work" in said(folder, job), "it works")
    successor = read_jobs(folder)[-1].job
    lab.run("scancel", job)
    wait_until(lambda: state_of(lab, successor) == "CANCELLED", "the successor's end")
    assert [record.job for record in read_jobs(folder)] == [job]


def test_a_merge_waits_for_the_jobs_that_resume_what_it_merges(lab: Lab, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    job = Script(folder, "exit 75", "chain").submit(lab)
    merge = Script(folder, "echo merges", after=job).submit(lab)
    wait_for(lab, job, DONE, folder)
    wait_for(lab, merge, DONE, folder)
    resumes = {record.predecessor: record for record in read_jobs(folder)}
    again = resumes[merge]
    assert resumes[job].job in again.after
    assert f"job {again.job} replaces it" in said(folder, merge)
    assert "merges" not in said(folder, merge)
    wait_until(lambda: state_of(lab, again.job) == "FAILED", "the second merge's own end")


def test_nodes_that_do_not_see_the_folder_of_the_work_are_named(lab: Lab, tmp_path: Path) -> None:
    """It is on the disk of the first node; nothing starts."""
    local = lab.folder / "private"
    lines = ("#!/bin/bash", job_line(sys.executable, f"{local}/run"), *BEFORE)
    script = tmp_path / "script.sh"
    script.write_text("\n".join((*lines, f"srun echo at work{BESIDE}", *AFTER)))
    job = lab.run("sbatch", "--parsable", "--nodes=2", f"--output={tmp_path}/log-%j", str(script))
    wait_until(lambda: state_of(lab, job) == "FAILED", "its end")
    assert detail(lab, job, "ExitCode") == "2:0"
    log = said(tmp_path, job)
    assert f"n2 does not see {local}/" in log
    assert "not /tmp or another local disk" in log
    assert "at work" not in log


def test_a_node_that_does_not_see_where_a_job_was_submitted_is_named(
    lab: Lab, tmp_path: Path
) -> None:
    folder = lab.folder / "private" / "mine"
    folder.mkdir()
    options = (f"--chdir={folder}", f"--output={tmp_path}/log-%j")
    lines = ("#!/bin/bash", job_line(sys.executable, str(tmp_path)), *BEFORE)
    script = tmp_path / "script.sh"
    script.write_text("\n".join((*lines, f"srun echo at work{BESIDE}", *AFTER)))
    job = lab.run("sbatch", "--parsable", *options, str(script))
    wait_until(lambda: state_of(lab, job) == "FAILED", "its end")
    assert detail(lab, job, "ExitCode") == "2:0"
    assert f"does not see {folder}, where job {job} was submitted" in said(tmp_path, job)
    assert "at work" not in said(tmp_path, job)
