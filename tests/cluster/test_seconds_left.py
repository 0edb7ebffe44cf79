"""How long a job has left, with and without the variable that newer Slurm sets."""

from __future__ import annotations

import time

import pytest

from t2i_hpc.cluster.slurm.client import seconds_left
from tests.cluster.clients import Clients


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
