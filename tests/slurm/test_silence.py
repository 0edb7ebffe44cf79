"""A controller that gives no answer: nothing is concluded, nothing is submitted twice."""

from __future__ import annotations

import io
import os
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any
from unittest import mock

from t2i_hpc.cancel import COMMAND as CANCEL
from t2i_hpc.cli.command import Command
from t2i_hpc.status import COMMAND as STATUS
from tests.slurm.jobs import launch, launched, state_of
from tests.slurm.lab import Lab
from tests.support.data import make_shards
from tests.support.training import TINY, environment


def said(lab: Lab, command: Command[Any], *arguments: str) -> tuple[int, str]:
    """Run a command in the lab's environment; return its exit code and all that it prints."""
    out = io.StringIO()
    variables = {**environment(), **lab.environment}
    with (
        mock.patch.dict(os.environ, variables, clear=True),
        redirect_stdout(out),
        redirect_stderr(out),
    ):
        return command.main(list(arguments)), out.getvalue()


def test_a_stopped_controller_is_no_end_of_a_job(lab: Lab, tmp_path: Path) -> None:
    data = make_shards(tmp_path, count=12, size=80)
    arguments = (f"data.path={data}", f"runs={tmp_path / 'runs'}", *TINY)
    (record,) = launched(lab, tmp_path, *arguments, "cluster.options=['--hold']")
    run = record.folder
    with lab.without_controller():
        code, status = said(lab, STATUS, run)
        assert code == 0
        assert "state" in status
        assert f"unknown: nobody knows whether job {record.job} still waits or runs" in status
        assert "Unable to contact slurm controller" in status
        code, told = said(lab, CANCEL, run)
        assert (code, told.count("\n")) == (2, 1)
        assert f"whether job {record.job} still waits or runs" in told
        again = launch(lab, *arguments, "cluster.check=false")
        assert (again.code, again.out) == (2, "")
        assert f"whether job {record.job} still waits or runs" in again.err
    assert state_of(lab, record.job) == "PENDING"
    names = lab.run("squeue", "-h", "--format=%j").split()
    assert names.count(record.name) == 1
    code, told = said(lab, CANCEL, run)
    assert code == 0, told
    assert state_of(lab, record.job) == "CANCELLED"
