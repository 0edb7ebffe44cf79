"""What status, cancel and table say and do, with a real queue and real accounting."""

from __future__ import annotations

import csv
import io
import json
import os
import time
from collections import Counter
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from t2i_hpc.cancel import COMMAND as CANCEL
from t2i_hpc.cli.command import Command
from t2i_hpc.cluster.jobs import cancelled_jobs
from t2i_hpc.cluster.slurm.client import states_of
from t2i_hpc.runs.checkpoint import open_checkpoint
from t2i_hpc.runs.layout import list_checkpoints
from t2i_hpc.runs.sessions import is_held
from t2i_hpc.status import COMMAND as STATUS
from t2i_hpc.table import COMMAND as TABLE
from tests.slurm.jobs import launch, launched, state_of, steps_of, training, wait_until
from tests.slurm.lab import Lab
from tests.support.data import make_shards
from tests.support.training import TINY, environment, only_run

POINTS = ("system.masks=2,3,4", "seed=1,2")


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_shards(tmp_path_factory.mktemp("data"), count=24, size=80)


def said(lab: Lab, command: Command[Any], *arguments: str) -> str:
    """Run a command in the lab's environment; return what it prints."""
    out = io.StringIO()
    variables = {**environment(), **lab.environment}
    with mock.patch.dict(os.environ, variables, clear=True), redirect_stdout(out):
        assert command.main(list(arguments)) == 0
    return out.getvalue()


def states(lab: Lab, *runs: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads(said(lab, STATUS, *map(str, runs), "format=json"))
    return rows


def test_a_sweep_of_six_points_and_its_table(lab: Lab, shards: Path, tmp_path: Path) -> None:
    arguments = [f"data.path={shards}", f"runs={tmp_path}", *TINY, "engine.images=12", *POINTS]
    arguments += ["--sweep", "cluster.array_parallelism=2"]
    assert len({record.folder for record in launched(lab, tmp_path, *arguments)}) == 6
    (sweep,) = (tmp_path / "sweeps").iterdir()
    seen: list[Counter[str]] = []

    def is_done() -> bool:
        time.sleep(1)  # the jobs need the processors
        seen.append(Counter(row["state"] for row in states(lab, sweep)))
        return set(seen[-1]) == {"done"}

    wait_until(is_done, f"the sweep is done: {states(lab, sweep)}")
    assert max(each["running"] for each in seen) == 2
    assert seen[0]["waiting"] >= 4
    rows = list(csv.DictReader(io.StringIO(said(lab, TABLE, str(sweep), "format=csv"))))
    assert [(row["system.masks"], row["seed"]) for row in rows] == [
        (m, s) for m in "234" for s in "12"
    ]
    assert {(row["state"], row["images"]) for row in rows} == {("done", "12")}
    again = launch(lab, *arguments)
    assert again.code == 0
    assert "nothing is left to do" in again.out


def test_cancel_leaves_no_process_and_a_consistent_run(
    lab: Lab, shards: Path, tmp_path: Path
) -> None:
    endless = ("engine.images=4000000", "engine.samples_every_images=4000000")
    job = training(lab, shards, tmp_path, *endless, "engine.checkpoint.every_images=40")
    wait_until(lambda: steps_of(tmp_path) > 10, "ten steps")
    run = only_run(tmp_path)
    later = launched(
        lab,
        tmp_path / "later",
        f"runs={tmp_path / 'later'}",
        "seed=2",
        f"data.path={shards}",
        *TINY,
        'cluster.options=["--begin=now+1hour"]',
    )
    assert [row["state"] for row in states(lab, tmp_path, tmp_path / "later")] == [
        "running",
        "waiting",
    ]
    (state,) = states(lab, run)
    assert (state["job"], state["nodes"], state["sessions"][0]["hosts"]) == (
        job,
        "n[1-2]",
        ["n1", "n2"],
    )
    assert "BeginTime" in said(lab, STATUS, later[0].folder)

    text = said(lab, CANCEL, str(run), later[0].folder, "wait=60")
    assert f"jobs that were cancelled: {job}, {later[0].job}" in text
    assert f"saved at {list_checkpoints(run)[-1]:,} images" in text
    assert {state_of(lab, each) for each in (job, later[0].job)} == {"CANCELLED"}
    assert not processes_with(str(tmp_path))
    assert not is_held(run)
    assert cancelled_jobs(run) == {job}
    assert open_checkpoint(run, list_checkpoints(run)[-1]).progress.images_seen > 0
    assert [row["state"] for row in states(lab, run)] == ["stopped"]
    assert "nothing to cancel" in said(lab, CANCEL, str(run))


def processes_with(text: str) -> list[str]:
    """Return the command lines of this machine's processes that hold a text."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:  # gone meanwhile
            continue
        if text in line and int(path.parent.name) != os.getpid():
            found.append(line)
    return found


def test_accounting_answers_when_the_queue_has_forgotten(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    arguments = ("--parsable", "--array=0-1", f"--output={tmp_path}/log", "--wrap=exit 3")
    array = lab.run("sbatch", *arguments)
    held = lab.run("sbatch", "--parsable", "--hold", "--array=0-2", "--wrap=true")
    for name, value in lab.environment.items():
        monkeypatch.setenv(name, value)
    jobs = [f"{array}_0", f"{array}_1", f"{held}_2", "999999"]
    wait_until(lambda: not any(each.lives for each in states_of(jobs[:2]).values()), "the end")
    now = states_of(jobs)
    assert [now[job].name for job in jobs[:3]] == ["FAILED", "FAILED", "PENDING"]
    assert now[jobs[2]].reason == "JobHeldUser"
    assert "999999" not in now
    assert states_of(["999999"]) == {}

    empty = tmp_path / "bin"
    empty.mkdir()
    (empty / "squeue").write_text("#!/bin/sh\n")
    (empty / "squeue").chmod(0o755)
    monkeypatch.setenv("PATH", f"{empty}:{os.environ['PATH']}")
    wait_until(lambda: set(jobs[:2]) <= states_of(jobs).keys(), "accounting knows them")
    past = states_of(jobs)
    assert [past[job].name for job in jobs[:2]] == ["FAILED", "FAILED"]
    assert jobs[2] not in past  # waits for ever as far as accounting knows

    monkeypatch.setenv("PATH", str(empty))  # no sacct
    assert states_of(jobs) == {}
    assert not caplog.records
    (empty / "squeue").write_text("#!/bin/sh\necho squeue: error: no controller >&2; exit 1\n")
    assert states_of(jobs) == {}
    assert "squeue refused: error: no controller" in caplog.text
    lab.run("scancel", held)
