"""Numbers of jobs as Slurm writes them, and the list of what a person cancelled."""

from __future__ import annotations

from pathlib import Path

import pytest

from t2i_hpc.cluster.states import JobState, cancelled_jobs, expand, mark_cancelled, states_of


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
    assert expand(name) == jobs


def test_cancelled_jobs_are_remembered(tmp_path: Path) -> None:
    assert cancelled_jobs(tmp_path) == set()
    mark_cancelled(tmp_path, ["7_0", "7_1"])
    mark_cancelled(tmp_path, ["9"])
    assert cancelled_jobs(tmp_path) == {"7_0", "7_1", "9"}


@pytest.mark.parametrize(
    ("word", "waits", "runs"),
    [("PENDING", True, False), ("COMPLETING", False, True), ("COMPLETED", False, False)],
)
def test_what_lives(word: str, waits: bool, runs: bool) -> None:
    state = JobState("7", word)
    assert (state.waits, state.runs, state.lives) == (waits, runs, waits or runs)


def test_a_machine_without_slurm_knows_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert states_of(["7", "8_1"]) == {}
    assert not caplog.records
