"""Jobs of the tests: submitted by `launch` or a script, interrupted, waited for.

Waits are long, for a slow machine, and end at once with what they wait for; they also end where a
job is over that would have to bring it about.
"""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Collection
from contextlib import redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import pytest
from safetensors.torch import load_file

from t2i_hpc import launch as command
from t2i_hpc.cluster.jobs import JobRecord, read_jobs
from t2i_hpc.common.files import read_json_lines
from t2i_hpc.runs.layout import folder_of, list_checkpoints
from tests.slurm.lab import Lab
from tests.support.training import TINY, environment, only_run

SCRIPTS = Path(__file__).parents[2] / "slurm"
ENDED = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "PREEMPTED"}
DONE = {"COMPLETED"}
PATIENCE, BRIEFLY = 600.0, 20.0
IMAGES = 160
FOUR = (
    "--nodes=2",
    "--ntasks-per-node=2",
    "--gpus-per-node=0",
    "--cpus-per-task=1",
    "--time=30",
)
HELD = "cluster.options=[--hold]"
ON_CPUS = ("cluster.gpus_per_node=0", "cluster.cpus_per_task=1", "cluster.time=30")


@dataclass(frozen=True)
class Answer:
    """What a command printed, and its exit code."""

    code: int
    out: str
    err: str


def launch(lab: Lab, *arguments: str) -> Answer:
    """Run `launch` in the lab's environment, on CPUs; in this process, which saves seconds."""
    out, err = io.StringIO(), io.StringIO()
    with (
        mock.patch.dict(os.environ, {**environment(), **lab.environment}, clear=True),
        redirect_stdout(out),
        redirect_stderr(err),
    ):
        named = any(each.startswith("cluster=") for each in arguments)
        code = command.main([*([] if named else ["cluster=slurm"]), *ON_CPUS, *arguments])
    return Answer(code, out.getvalue(), err.getvalue())


def launched(lab: Lab, folder: Path, *arguments: str) -> list[JobRecord]:
    """Launch what belongs into `folder` or a run inside of it; return the new jobs."""
    before = _all_records(folder)
    done = launch(lab, *arguments)
    assert done.code == 0, done.out + done.err
    return [record for record in _all_records(folder) if record not in before]


def _all_records(folder: Path) -> list[JobRecord]:
    folders = sorted(path.parent for path in folder.glob("**/jobs"))
    records = {record.job: record for each in folders for record in read_jobs(each)}
    return list(records.values())


def training(lab: Lab, shards: Path, runs: Path, *arguments: str) -> str:
    """Launch a tiny training on two nodes; return the job's number."""
    given = ("cluster.nodes=2", f"data.path={shards}", f"runs={runs}", *TINY, *arguments)
    (record,) = launched(lab, runs, *given)
    return record.job


def submit(lab: Lab, script: str, folder: Path, options: Collection[str], *arguments: str) -> str:
    """Submit a script from a folder; return the job's number."""
    folder.mkdir(exist_ok=True)
    (folder / ".venv").symlink_to(Path(sys.prefix))
    done = lab.run(
        "sbatch", "--parsable", f"--chdir={folder}", *options, str(SCRIPTS / script), *arguments
    )
    return done.split(";")[0]


def run_script(lab: Lab, script: str, *arguments: str) -> str:
    """Run a script that launches, as a person does on a login node; return what it prints."""
    path = os.pathsep.join([str(Path(sys.executable).parent), lab.environment["PATH"]])
    done = subprocess.run(
        ["bash", str(SCRIPTS / script), *ON_CPUS, *arguments],
        env={**environment(), **lab.environment, "PATH": path},
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def state_of(lab: Lab, job: str) -> str:
    return lab.run("squeue", "-h", "--states=all", "-j", job, "-o", "%T", check=False)


def detail(lab: Lab, job: str, name: str) -> str:
    """Return a field of what Slurm shows of a job."""
    lines = lab.run("scontrol", "show", "job", job).split()
    return next(line.partition("=")[2] for line in lines if line.startswith(f"{name}="))


def wait_for(lab: Lab, job: str, states: Collection[str], logs: Path) -> None:
    """Wait until a job is in one of some states."""
    wait_until(lambda: state_of(lab, job) in states, f"{job} in {states}", (lab, job, logs))


def log_text(path: Path) -> str:
    return f"{path}:\n{path.read_text()}" if path.is_file() else ""


def wait_until(
    holds: Callable[[], bool], what: str, worker: tuple[Lab, str, Path] | None = None
) -> None:
    """Wait until something holds; fail the test where that takes too long.

    Args:
        holds: is asked every tenth of a second.
        what: is said where it does not hold in the end.
        worker: a cluster, a job of it that brings it about, and the folder of its logs. A job that
            is requeued may look ended for a moment.
    """
    begun = alive = time.monotonic()
    while not holds():
        now = time.monotonic()
        if worker is None or state_of(*worker[:2]) not in ENDED:
            alive = now
        if now - alive > BRIEFLY or now - begun > PATIENCE:
            pytest.fail(
                f"not within {now - begun:.0f} s: {what}\n{_account(*worker) if worker else ''}"
            )
        time.sleep(0.1 if worker is None else 0.3)


def _account(lab: Lab, job: str, logs: Path) -> str:
    said = "".join(log_text(path) for path in sorted(logs.glob("**/*log*")))
    return f"{said}\n{lab.run('scontrol', 'show', 'job', job)}"


def steps_of(runs: Path) -> int:
    """Return how many steps the only run inside `runs` logged; 0 before it is there."""
    return sum(len(read_json_lines(path)) for path in runs.glob("*/metrics.jsonl"))


def log_of(runs: Path) -> str:
    """Return what the first rank of the only run's jobs printed."""
    logs = sorted((only_run(runs) / "jobs").glob("*_0_log.out"))
    return "".join(path.read_text() for path in logs)


def kill_script(lab: Lab, job: str) -> None:
    """Kill a job's batch script, as the kernel does where memory is short."""
    _kill(f"job{int(job):05d}/slurm_script", SLURM_CONF=lab.environment["SLURM_CONF"])


def kill_rank(lab: Lab, job: str, rank: int) -> None:
    """Kill one rank of a training."""
    own = {"SLURM_CONF": lab.environment["SLURM_CONF"], "SLURM_JOB_ID": job}
    _kill("t2i_hpc.train", SLURM_PROCID=str(rank), **own)


def _kill(text: str, **environment: str) -> None:
    """Kill the processes whose command line holds a text, and which have some variables."""
    wanted = {f"{name}={value}" for name, value in environment.items()}
    for path in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # gone meanwhile
            line, variables = (
                (path / name).read_bytes().decode(errors="replace").split("\0")
                for name in ("cmdline", "environ")
            )
            if text in " ".join(line) and wanted <= set(variables):
                os.kill(int(path.name), signal.SIGKILL)


def equal_bits(one: Path, other: Path) -> bool:
    """Whether two runs ended at the same image, with the same weights."""
    found = [only_run(runs) for runs in (one, other)]
    ends = [list_checkpoints(run)[-1] for run in found]
    assert ends[0] == ends[1]
    weights = [load_file(folder_of(run, ends[0]) / "weights.safetensors") for run in found]
    return all(bool((weights[0][name] == weights[1][name]).all()) for name in weights[0])
