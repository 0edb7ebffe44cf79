"""The task that decides about a job, and a job that is followed to its end."""

from __future__ import annotations

import dataclasses
import os
import sys
from pathlib import Path
from unittest import mock

import pytest

from t2i_hpc.cluster.jobs import JobRecord, record_jobs
from t2i_hpc.cluster.slurm.follow import follow
from t2i_hpc.config.cluster import ClusterConfig
from tests.slurm.jobs import detail, state_of, wait_until
from tests.slurm.lab import Lab

EPILOGUE = f"{sys.executable} -m t2i_hpc.cluster.slurm.job"


def wrapped(lab: Lab, folder: Path, *lines: str, options: tuple[str, ...] = ()) -> str:
    """Submit a script of some lines, held back; return the job's number."""
    folder.mkdir()
    script = folder / "script.sh"
    script.write_text("\n".join(("#!/bin/bash", "set +e", *lines, "")))
    arguments = (f"--output={folder}/log", "--requeue", "--hold", "--time=5", *options)
    return lab.run("sbatch", "--parsable", *arguments, str(script))


def test_the_task_that_failed_by_itself_decides(lab: Lab, tmp_path: Path) -> None:
    """One task fails; the other, which lost it, has the higher exit code."""
    run = tmp_path / "run"
    lines = (
        "echo Starting with JobEnvironment",
        "srun bash -c 'exit $((SLURM_PROCID ? 76 : 1))'",
        f"{EPILOGUE} {run} $?",
    )
    job = wrapped(lab, run, *lines, options=("--ntasks=2",))
    cluster = dataclasses.asdict(ClusterConfig(name="slurm"))
    record_jobs(run, [JobRecord(job, "x", "train", (), str(run), str(run / "log"), cluster, "now")])
    lab.run("scontrol", "release", job)
    wait_until(lambda: state_of(lab, job) == "FAILED", "the job's end")
    assert "Exited with exit code 76" in (run / "log").read_text()
    assert detail(lab, job, "ExitCode") == "1:0"


@pytest.mark.parametrize(("code", "state"), [(0, "COMPLETED"), (3, "FAILED")])
def test_a_job_is_followed_to_its_end(
    lab: Lab, tmp_path: Path, code: int, state: str, capfd: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    job = wrapped(lab, run, "echo one", "sleep 2", "echo two", f"exit {code}")
    record = JobRecord(job, "x", "train", (), str(run), str(run / "log"), {}, "now")
    lab.run("scontrol", "release", job)
    with mock.patch.dict(os.environ, lab.environment):
        assert follow([record], run) == (code != 0)
    out, _ = capfd.readouterr()
    assert out.endswith(f"one\ntwo\njob {job}: {state}\n")
