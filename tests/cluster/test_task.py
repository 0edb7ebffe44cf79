"""The first moments of a task on its node."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

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
