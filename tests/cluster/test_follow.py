"""Following an array whose elements are resumed by other jobs."""

from __future__ import annotations

from pathlib import Path

import pytest

from t2i_hpc.cluster.jobs import JobRecord, record_jobs
from t2i_hpc.cluster.slurm import follow as module
from t2i_hpc.cluster.slurm.client import Answer, JobState, Pace
from t2i_hpc.cluster.slurm.follow import follow
from tests.cluster.clients import Clients


def record(folder: Path, job: str, predecessor: str = "") -> JobRecord:
    log = str(folder / f"{job}.log")
    made = JobRecord(job, "x", "evaluate", (), str(folder), log, {}, "now", predecessor)
    record_jobs(folder, [made])
    return made


def test_successors_are_followed_in_the_place_of_their_jobs(
    clients: Clients,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    clients.answer("squeue")
    array = [record(tmp_path, "1_0"), record(tmp_path, "1_1")]
    record(tmp_path, "5", "1_0")
    said = [
        {"1_0": "TIMEOUT", "1_1": "RUNNING"},
        {"5": "RUNNING", "1_1": "COMPLETED"},
        {"5": "COMPLETED", "1_1": "COMPLETED"},
    ]
    answers = iter(Answer({job: JobState(job, name) for job, name in s.items()}) for s in said)
    asked: list[list[str]] = []

    def ask(jobs: list[str]) -> Answer:
        asked.append(list(jobs))
        return next(answers)

    monkeypatch.setattr(module, "ask_states", ask)
    monkeypatch.setattr(module, "_LOG_SECONDS", 0)
    assert follow(array, tmp_path, Pace(0, 0)) == 0
    assert asked == [["1_0", "1_1"], ["5", "1_1"], ["5", "1_1"]]
    assert capfd.readouterr().out.endswith("2 jobs: 2 COMPLETED\n")
