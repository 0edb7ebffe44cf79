"""The first moments of a task on its node."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cluster.clients import Clients

TASK = f"""#!{sys.executable}
import os, signal, sys
from t2i_hpc.training.stopping import listening
os.kill(os.getpid(), signal.SIGUSR2)  # while a task still imports
with listening() as stop:
    print(stop.reason, *sys.argv[1:])
"""
START = """
import sys
from t2i_hpc.cluster.slurm.task import TaskCommand
sys.executable = sys.argv[1]
TaskCommand(sys.argv[2], ("seed=1", "name=a b"), "runs/x")()
"""


def start(folder: Path, task: str) -> subprocess.CompletedProcess[str]:
    program = folder / "python"
    program.write_text(TASK)
    program.chmod(0o755)
    command = [sys.executable, "-c", START, str(program), task]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def test_a_signal_before_the_task_listens_is_not_lost(tmp_path: Path) -> None:
    done = start(tmp_path, "train")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "SIGUSR2 -u -m t2i_hpc.train seed=1 name=a b\n"


def test_a_task_that_does_not_listen_can_be_ended(tmp_path: Path) -> None:
    assert start(tmp_path, "evaluate").returncode == -signal.SIGUSR2


KILLED = "JobId=7 JobState=COMPLETING Reason=JobLaunchFailure Restarts=0 PreemptTime=None"
SCONTROL = f"""#!/bin/bash
[ "$1" = show ] && {{ echo "{KILLED}"; exit 0; }}
kill -TERM $PPID $$
sleep 0.2
echo "$@" >> "$0.calls"
"""


@pytest.fixture
def killed(clients: Clients, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Be in a job whose batch script was killed; return the file of its accepted requeues.

    Slurm ends what is left of a job that is requeued: all of its processes, scontrol too.
    """
    client = clients.folder / "scontrol"
    client.write_text(SCONTROL)
    client.chmod(0o755)
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    for name in ("SLURM_RESTART_COUNT", "SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID"):
        monkeypatch.delenv(name, raising=False)
    return client.with_name("scontrol.calls")


def test_a_build_that_requeues_its_job_outlives_the_term_of_the_requeue(
    killed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    captions = tmp_path / "captions"
    os.mkfifo(captions)
    monkeypatch.setenv("SLURM_PROCID", "0")
    task = [sys.executable, "-m", "t2i_hpc.cluster.slurm.task", str(tmp_path), "shards"]
    task += ["source=coco", f"images={tmp_path}", f"captions={captions}", f"output={tmp_path}/x"]
    build = subprocess.Popen(task, stderr=subprocess.PIPE, text=True)
    with captions.open("w"):  # once the build reads them
        build.terminate()
        _, said = build.communicate(timeout=60)
    assert build.returncode == -signal.SIGTERM
    assert "job 7 is requeued" in said
    assert killed.read_text() == "requeue 7\n"


def test_a_batch_script_that_requeues_its_job_outlives_the_term_of_the_requeue(
    killed: Path, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "t2i_hpc.cluster.slurm.job", str(tmp_path), "TERM"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "job 7 is requeued" in done.stderr
    assert killed.read_text() == "requeue 7\n"
