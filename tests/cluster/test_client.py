"""Slurm's clients: states of jobs, the time that is left, and how often they are asked."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from t2i_hpc.cluster.jobs import cancelled_jobs, mark_cancelled
from t2i_hpc.cluster.slurm import client
from t2i_hpc.cluster.slurm.client import (
    JobState,
    Polling,
    ask_states,
    expand,
    seconds_left,
    states_of,
)
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


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0:07", 7.0),
        ("5:30", 330.0),
        ("1:00:00", 3600.0),
        ("2-03:04:05", 183845.0),
        ("UNLIMITED", None),
        ("INVALID", None),
        ("", None),
    ],
)
def test_the_queue_is_asked_where_slurm_sets_no_variable(
    clients: Clients, text: str, seconds: float | None
) -> None:
    clients.answer("squeue", text)
    environment = {"SLURM_JOB_ID": "9", "SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "3"}
    assert seconds_left(environment) == seconds
    assert clients.calls == ["squeue --noheader --jobs=7_3 --format=%L"]


def test_the_variable_is_believed(clients: Clients) -> None:
    clients.answer("squeue", "5:00")
    left = seconds_left({"SLURM_JOB_ID": "7", "SLURM_JOB_END_TIME": str(int(time.time()) + 600)})
    assert left is not None
    assert 595 < left <= 600
    assert clients.calls == []


def test_outside_of_jobs_and_without_an_answer_nothing_is_known(clients: Clients) -> None:
    clients.answer("squeue", "no controller", 1)
    assert seconds_left({}) is None
    assert clients.calls == []
    assert seconds_left({"SLURM_JOB_ID": "7"}) is None


class Clock:
    """A time that only a test moves."""

    now = 1000.0

    def monotonic(self) -> float:
        """Return it."""
        return self.now


def intervals(clock: Clock, asked: Polling, news: list[bool]) -> list[float]:
    """Return the seconds until the next question, after each of some answers."""
    found = []
    for new in news:
        asked.asked(news=new)
        before = clock.now
        while not asked.is_due():
            clock.now += 0.5
        found.append(clock.now - before)
    return found


def test_questions_begin_at_10_seconds_and_grow_to_60(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sites lock accounts that ask more often; a minute is as long as a person may wait."""
    clock, asked = Clock(), Polling()
    monkeypatch.setattr(client, "time", clock)
    assert asked.is_due()
    assert intervals(clock, asked, [True]) == [10]
    grown = intervals(clock, asked, [False] * 8)
    assert grown == sorted(grown)
    assert (grown[0], grown[-1]) == (15, 60)
    assert intervals(clock, asked, [True, False]) == [10, 15]


def test_a_day_of_waiting_is_few_questions(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, asked = Clock(), Polling()
    monkeypatch.setattr(client, "time", clock)
    assert sum(intervals(clock, asked, [False] * 1440)) > 23.8 * 3600
