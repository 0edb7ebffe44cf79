"""What the end of a task means for its job."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from t2i_hpc.cluster.jobs import JobRecord, chain_of, read_jobs, record_jobs
from t2i_hpc.cluster.slurm.afterwards import GAVE_UP, afterwards
from t2i_hpc.cluster.slurm.bad_nodes import find_bad_nodes
from t2i_hpc.cluster.slurm.causes import cause_of
from t2i_hpc.cluster.states import mark_cancelled
from t2i_hpc.common.sessions import Session, write_begin, write_end
from t2i_hpc.config.cluster import ClusterConfig
from tests.cluster.clients import Clients

REQUEUE = "scontrol requeue 7"


@pytest.fixture
def slurm(clients: Clients, monkeypatch: pytest.MonkeyPatch) -> Clients:
    """Be in job 7, which runs on one of two nodes."""
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_JOB_PARTITION", "gpu")
    monkeypatch.delenv("SLURM_ARRAY_JOB_ID", raising=False)
    clients.answer("scontrol")
    clients.answer("squeue", "7|RUNNING|None|n1")
    clients.answer("sinfo", "gpu*|up|infinite|2|8|(null)")
    return clients


def submitted(folder: Path, job: str = "7", follows: str = "", **settings: Any) -> Path:
    cluster = dataclasses.asdict(ClusterConfig(name="slurm", **settings))
    record = JobRecord(job, "x", "train", ("seed=1",), str(folder), "log", cluster, "now", follows)
    record_jobs(folder, [record])
    return folder


def save(folder: Path, images: int) -> None:
    (folder / f"checkpoints/{images:010d}").mkdir(parents=True)


def fail_on(folder: Path, *hosts: str, job: str = "7") -> None:
    words = {"job": job, "restart": 0, "ranks": 2, "pid": 1, "images": 0}
    identity = write_begin(folder, hosts=("n1", "n2"), **words)  # type: ignore[arg-type]
    write_end(folder, identity, "lost", 0, lost_hosts=hosts)


@pytest.mark.parametrize("code", [0, 1, 2, 77])
def test_an_end_that_stays_what_it_is(slurm: Clients, tmp_path: Path, code: int) -> None:
    assert afterwards(submitted(tmp_path / "run"), code) == code
    assert slurm.calls == []


@pytest.mark.parametrize("code", [75, 76, 137, 143])
def test_a_task_that_can_go_on_is_put_back(slurm: Clients, tmp_path: Path, code: int) -> None:
    afterwards(submitted(tmp_path / "run"), code)
    assert REQUEUE in slurm.calls


def test_a_script_without_a_record_is_put_back(slurm: Clients, tmp_path: Path) -> None:
    afterwards(tmp_path / "run", 75)
    assert REQUEUE in slurm.calls


def test_a_job_that_is_to_end_ends(slurm: Clients, tmp_path: Path) -> None:
    assert afterwards(submitted(tmp_path / "run", on_stop="end"), 75) == 75
    assert REQUEUE not in slurm.calls


@pytest.mark.parametrize("state", ["CANCELLED", "PENDING", "COMPLETING"])
def test_what_slurm_decided_already_is_left_alone(
    slurm: Clients, tmp_path: Path, state: str, capfd: pytest.CaptureFixture[str]
) -> None:
    slurm.answer("squeue", f"7|{state}|None|n1")
    assert afterwards(submitted(tmp_path / "run"), 75) == 75
    assert REQUEUE not in slurm.calls
    assert f"job 7 is {state}" in capfd.readouterr().err


def test_a_job_that_a_person_cancelled_is_left_alone(slurm: Clients, tmp_path: Path) -> None:
    mark_cancelled(tmp_path / "run", ["7"])
    assert afterwards(submitted(tmp_path / "run"), 75) == 75
    assert REQUEUE not in slurm.calls


def test_starts_without_a_new_checkpoint_are_counted(
    slurm: Clients, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = submitted(tmp_path / "run", max_restarts=2)
    save(run, 0)
    codes = []
    for _ in range(2):
        codes += [afterwards(run, 76) for _ in range(2)]
        save(run, 100 * len(codes))  # progress: the count begins anew
    assert codes == [76] * 4
    assert [afterwards(run, 76) for _ in range(3)] == [76, 76, 76]
    assert afterwards(run, 76) == GAVE_UP
    assert "gives up: 3 starts in a row" in capfd.readouterr().err
    assert slurm.calls.count(REQUEUE) == 7


def test_a_job_that_never_saves_gives_up(slurm: Clients, tmp_path: Path) -> None:
    run = submitted(tmp_path / "run", max_restarts=1)
    assert [afterwards(run, 76) for _ in range(2)] == [76, GAVE_UP]


def test_another_submission_is_counted_by_itself(
    slurm: Clients, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = submitted(tmp_path / "run", max_restarts=0)
    assert afterwards(run, 76) == GAVE_UP
    submitted(run, "8", max_restarts=1)
    monkeypatch.setenv("SLURM_JOB_ID", "8")
    slurm.answer("squeue", "8|RUNNING|None|n1")
    assert afterwards(run, 76) == 76


def test_a_node_that_failed_twice_is_left_out(
    slurm: Clients, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = submitted(tmp_path / "run", exclude="n9")
    fail_on(run, "n2")
    afterwards(run, 76)
    assert not [call for call in slurm.calls if "ExcNodeList" in call]
    fail_on(run, "n2")
    afterwards(run, 76)
    assert slurm.calls[-1] == "scontrol update JobId=7 ExcNodeList=n9,n2"
    assert "n2 failed twice and is not used again" in capfd.readouterr().err


def test_no_node_is_left_out_where_there_is_no_other(
    slurm: Clients, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = submitted(tmp_path / "run", nodes=2)
    for _ in range(2):
        fail_on(run, "n2")
    afterwards(run, 76)
    assert slurm.calls[-1] == REQUEUE
    assert "no other nodes" in capfd.readouterr().err


def test_a_refusal_of_slurm_is_said(
    slurm: Clients, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    slurm.answer("scontrol", "Requested operation is presently disabled", 1)
    assert afterwards(submitted(tmp_path / "run"), 75) == 75
    assert "cannot go on by itself: scontrol refused: Requested" in capfd.readouterr().err


def test_only_the_last_start_tells_the_cause(tmp_path: Path) -> None:
    log = tmp_path / "log"
    ended = "srun: error: n1: task{} Exited with exit code {}\n"
    log.write_text(
        "Starting with JobEnvironment\n"
        + ended.format(" 3:", 1)
        + "Starting with JobEnvironment\n"
        + ended.format("s 0-1:", 76)
    )
    assert cause_of(log, 76) == 76
    log.write_text(log.read_text() + ended.format("s 2,4-5:", 2))
    assert cause_of(log, 76) == 2
    assert cause_of(log, 137) == 137
    assert cause_of(tmp_path / "nothing", 76) == 76


def test_bad_nodes_are_those_of_the_own_jobs() -> None:
    cut_off = Session("a", "now", job="7", hosts=("n1", "n2"))
    lost = Session("b", "now", job="8", hosts=("n1",), outcome="lost", lost_hosts=("n1",))
    done = Session("c", "now", job="7", hosts=("n2",), outcome="done")
    assert find_bad_nodes([cut_off, lost, done], {"7", "8"}) == ["n1"]
    assert find_bad_nodes([cut_off, lost, done], {"7"}) == []
    assert find_bad_nodes([cut_off, cut_off], {"7"}) == ["n1"]


def test_a_chain_of_successors(tmp_path: Path) -> None:
    for job, follows in (("1", ""), ("2", "1"), ("3", "2"), ("9", "")):
        submitted(tmp_path, job, follows)
    assert chain_of(read_jobs(tmp_path), "3") == ["3", "2", "1"]
    assert chain_of([], "5") == ["5"]
