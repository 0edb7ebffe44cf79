"""The lines that let a job resume: the same in every batch script, and right in a shell."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

from t2i_hpc.cluster.slurm.submission import AFTER, BEFORE, BESIDE, job_line

SCRIPTS = Path(__file__).parents[2] / "slurm"
TRAINING = ("train_coco.sh", "train_cub.sh", "pretrain_damsm.sh", "sweep_masks.sh")


@pytest.mark.parametrize("name", TRAINING)
def test_scripts_hold_the_lines_of_launch(name: str) -> None:
    lines = (SCRIPTS / name).read_text().splitlines()
    first, last = lines.index(BEFORE[0]), lines.index(AFTER[0])
    assert lines[first - 2] == job_line("python", '"$run"')
    assert tuple(lines[first : first + len(BEFORE)]) == BEFORE
    assert tuple(lines[last:]) == AFTER
    (step,) = [line for line in lines[first:last] if line.startswith("srun ")]
    assert step.endswith(BESIDE)


def script(folder: Path, step: str, begin: int = 0) -> subprocess.Popen[str]:
    """Start the lines of a batch script around a step; `job` only notes what it is asked."""
    job = folder / "job"
    job.write_text(
        f'#!/bin/bash\necho "$1" >> {folder}/asked\n[ "$1" = begin ] && exit {begin}\n'
        '[ "$1" = TERM ] && exit 0\nexit "$1"\n'
    )
    job.chmod(0o755)
    lines = ("set -euo pipefail", f"job=({job})", *BEFORE, f"{step}{BESIDE}", *AFTER)
    return subprocess.Popen(
        ["bash", "-c", "\n".join(lines)], stdout=subprocess.PIPE, text=True, start_new_session=True
    )


def asked(folder: Path) -> list[str]:
    return (folder / "asked").read_text().split()


@pytest.mark.parametrize("code", [0, 1, 75])
def test_the_code_of_the_step_is_that_of_the_job(tmp_path: Path, code: int) -> None:
    assert script(tmp_path, f"bash -c 'exit {code}'").wait(30) == code
    assert asked(tmp_path) == ["begin", str(code)]


def test_a_step_that_is_not_to_start_does_not(tmp_path: Path) -> None:
    assert script(tmp_path, f"touch {tmp_path}/started", begin=79).wait(30) == 79
    assert asked(tmp_path) == ["begin", "79"]
    assert not (tmp_path / "started").exists()


def test_term_is_answered_while_the_step_still_saves(tmp_path: Path) -> None:
    """And the step's own code counts, not that of the signal."""
    saves = f"trap 'until [ -s {tmp_path}/go ]; do sleep 0.05; done; exit 75' TERM; echo on; "
    shell = script(tmp_path, f'bash -c "{saves} while :; do sleep 0.05; done"')
    assert shell.stdout is not None
    assert shell.stdout.readline() == "on\n"
    os.killpg(shell.pid, signal.SIGTERM)  # as Slurm does: all processes of the step
    while asked(tmp_path) != ["begin", "TERM"]:
        assert shell.poll() is None
    (tmp_path / "go").write_text("now")
    assert shell.wait(30) == 75
    assert asked(tmp_path) == ["begin", "TERM", "75"]
