"""Numbers of jobs as Slurm writes them, their states, and the list of cancelled jobs."""

from __future__ import annotations

from pathlib import Path

import pytest

from t2i_hpc.cluster.jobs import cancelled_jobs, mark_cancelled
from t2i_hpc.cluster.slurm.client import JobState, ask_states, expand, states_of
from t2i_hpc.common.errors import ClusterError
from tests.cluster.clients import Clients

SILENT = "slurm_load_jobs error: Unable to contact slurm controller (connect failure)"


@pytest.mark.parametrize(
    ("name", "jobs"),
    [
        ("7", ["7"]),
        ("7_3", ["7_3"]),
        ("7_[3]", ["7_3"]),
        ("7_[0-2,5%2]", ["7_0", "7_1", "7_2", "7_5"]),
        ("7_[0-6:3]", ["7_0", "7_3", "7_6"]),
    ],
)
def test_elements_of_arrays(name: str, jobs: list[str]) -> None:
    assert expand(name) == (jobs, True)


def test_a_list_that_was_cut_short_is_no_whole_list() -> None:
    assert expand("7_[0,2,4,...%2]") == (["7_0", "7_2", "7_4"], False)
    assert expand("7_[0-9:x]") == ([], False)


def test_cancelled_jobs_are_remembered(tmp_path: Path) -> None:
    assert cancelled_jobs(tmp_path) == set()
    mark_cancelled(tmp_path, ["7_0", "7_1"])
    mark_cancelled(tmp_path, ["9"])
    assert cancelled_jobs(tmp_path) == {"7_0", "7_1", "9"}


@pytest.mark.parametrize(
    ("name", "waits", "runs"),
    [
        ("PENDING", True, False),
        ("COMPLETING", False, True),
        ("COMPLETED", False, False),
        ("REVOKED", False, False),
        ("LAUNCH_FAILED", False, False),
        ("POWER_UP_NODE", False, True),  # of newer versions: not over
        ("EXPEDITING", False, True),
    ],
)
def test_what_lives(name: str, waits: bool, runs: bool) -> None:
    state = JobState("7", name)
    assert (state.waits, state.runs, state.lives) == (waits, runs, waits or runs)


def test_a_machine_without_slurm_knows_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert states_of(["7", "8_1"]) == {}
    assert not caplog.records
    assert ask_states(["7", "8_1"]).unanswered == {"7", "8_1"}
    assert ask_states([]).unanswered == frozenset()


def test_no_answer_is_not_the_end_of_a_job(clients: Clients) -> None:
    clients.answer("squeue", SILENT, 1)
    answer = ask_states(["7", "8_1"])
    assert not answer.states
    assert answer.unanswered == {"7", "8_1"}
    assert "Unable to contact" in answer.reason
    with pytest.raises(ClusterError, match=r"whether jobs 7, 8_1 still .* squeue got no answer"):
        answer.living()
    clients.answer("sacct", "7|FAILED|None|n1\n8_1|RUNNING|None|n1")
    answer = ask_states(["7", "8_1"])
    assert answer.states["7"].name == "FAILED"
    assert answer.unanswered == {"8_1"}


def test_a_job_that_the_queue_does_not_know_is_over(clients: Clients) -> None:
    clients.answer("squeue", "slurm_load_jobs error: Invalid job id specified", 1)
    assert ask_states(["7"]).living() == {}
    clients.answer("squeue", "9|RUNNING|None|n1")
    assert ask_states(["7"]).living() == {}


def test_what_slurm_prints_is_read_with_distrust(clients: Clients) -> None:
    clients.answer("squeue", "CLUSTER: serial\n7|RUNNING|None|n1")
    clients.answer("sacct", "")
    assert ask_states(["7", "8"]).living().keys() == {"7"}
    clients.answer("squeue", "a notice of this site\n7|RUNNING|None|n1\n8|PENDING")
    answer = ask_states(["7", "8"])
    assert answer.states.keys() == {"7"}
    assert answer.unanswered == {"8"}
    assert "cannot be read: a notice of this site" in answer.reason
    clients.answer("squeue", "7_[0,2,...%2]|PENDING|Resources|\n7_1|RUNNING|None|n1")
    living = ask_states(["7_0", "7_1", "7_9"]).living()
    assert [living[job].name for job in sorted(living)] == ["PENDING", "RUNNING", "PENDING"]


def test_lists_of_elements_are_asked_for_whole(clients: Clients) -> None:
    clients.answer("squeue", "")
    (clients.folder / "squeue").write_text(
        f"#!/bin/bash\necho $SLURM_BITSTR_LEN >> {clients.folder}/seen\n"
    )
    clients.answer("sacct", "")
    ask_states(["7_1"])
    assert (clients.folder / "seen").read_text() == "0\n"
