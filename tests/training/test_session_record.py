"""A session's record: how it began, and how it ended, however it did."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from t2i_hpc.common.errors import LOST_RANK, STOPPED
from t2i_hpc.runs.run_directory import locked
from t2i_hpc.runs.sessions import is_held, job_of, read_sessions, write_begin, write_end
from t2i_hpc.training.session_record import run_recorded
from t2i_hpc.training.world import World

ALONE = World(0, 1, 0, 1, torch.device("cpu"))
HOSTS = ("n1", "n2")


def raising(error: BaseException) -> int:
    raise error


@pytest.mark.parametrize(("code", "outcome"), [(0, "done"), (STOPPED, "stopped")])
def test_a_good_end(code: int, outcome: str, tmp_path: Path) -> None:
    (tmp_path / "checkpoints" / "0000000040").mkdir(parents=True)

    def work() -> int:
        (running,) = read_sessions(tmp_path)
        assert (running.outcome, running.ended, running.pid) == (None, None, os.getpid())
        (tmp_path / "checkpoints" / "0000000080").mkdir()
        return code

    assert run_recorded(tmp_path, ALONE, HOSTS, work) == code
    (session,) = read_sessions(tmp_path)
    assert (session.outcome, session.hosts, session.ranks) == (outcome, HOSTS, 1)
    assert (session.first_images, session.last_images) == (40, 80)


@pytest.mark.parametrize("error", [ValueError("no such color\nat all"), KeyboardInterrupt()])
def test_an_error_is_recorded_and_raised(error: BaseException, tmp_path: Path) -> None:
    with pytest.raises(type(error)) as raised:
        run_recorded(tmp_path, ALONE, HOSTS, lambda: raising(error))
    assert raised.value is error
    (session,) = read_sessions(tmp_path)
    assert session.outcome == "failed"
    assert session.message in ("no such color", "KeyboardInterrupt")


def test_a_record_that_cannot_be_written_hides_nothing(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    assert run_recorded(file, ALONE, HOSTS, lambda: STOPPED) == STOPPED
    with pytest.raises(ValueError, match="the real one"):
        run_recorded(file, ALONE, HOSTS, lambda: raising(ValueError("the real one")))


def test_an_error_of_a_broken_connection_waits_for_the_heartbeat(tmp_path: Path) -> None:
    """The heartbeat knows better whose fault it was, and ends the process."""
    pair = replace(ALONE, size=2)
    with pytest.raises(dist.DistBackendError):
        run_recorded(tmp_path, pair, HOSTS, lambda: raising(dist.DistBackendError("closed")))
    assert read_sessions(tmp_path)[0].outcome is None


EXIT = """
import os, sys
from pathlib import Path
import torch
from t2i_hpc.training.session_record import run_recorded
from t2i_hpc.common.process import exit_at_once
from t2i_hpc.training.world import World
run = Path(sys.argv[1])
def work():
    if len(sys.argv) > 2:
        (run / "sessions.jsonl").unlink()
        os.mkfifo(run / "sessions.jsonl")  # who opens it waits for ever, as on a dead server
    exit_at_once(76, "t2i_hpc: rank 1 died", ("n2",))
run_recorded(run, World(0, 2, 0, 2, torch.device("cpu")), ("n1", "n2"), work)
"""


@pytest.mark.parametrize("hung", [False, True])
def test_an_exit_at_once_is_recorded_if_the_disk_answers(hung: bool, tmp_path: Path) -> None:
    command = [sys.executable, "-c", EXIT, str(tmp_path), *(["hung"] if hung else [])]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (LOST_RANK, "t2i_hpc: rank 1 died\n")
    if not hung:
        (session,) = read_sessions(tmp_path)
        assert (session.outcome, session.message) == ("lost", "rank 1 died")
        assert session.lost_hosts == ("n2",)


def test_a_half_written_line_spoils_no_other(tmp_path: Path) -> None:
    path = tmp_path / "sessions.jsonl"
    path.write_text('{"identity": "1", "beg')
    name = write_begin(tmp_path, job="7", restart=2, hosts=HOSTS, ranks=4, pid=9, images=8)
    write_end(tmp_path, name, "lost", 8, message="n2 is gone", lost_hosts=("n2",))
    (session,) = read_sessions(tmp_path)
    assert (session.job, session.restart, session.lost_hosts) == ("7", 2, ("n2",))


def test_a_held_lock_is_seen(tmp_path: Path) -> None:
    assert not is_held(tmp_path)
    with locked(tmp_path):
        assert is_held(tmp_path)
    assert not is_held(tmp_path)


def test_jobs_are_named_as_slurm_names_them() -> None:
    element = {"SLURM_JOB_ID": "9", "SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "2"}
    assert job_of(element) == "7_2"
    assert job_of({"SLURM_JOB_ID": "9"}) == "9"
    assert job_of({}) == ""
