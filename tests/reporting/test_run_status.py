"""Run status, from the files of runs and from what Slurm says of their jobs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from t2i_hpc.cluster.jobs import JobRecord, find_jobs, record_jobs
from t2i_hpc.cluster.slurm.client import Answer, JobState
from t2i_hpc.cluster.sweeps import find_runs
from t2i_hpc.common.files import append_json_line
from t2i_hpc.reporting import run_status
from t2i_hpc.reporting.run_record import last_error, last_row
from t2i_hpc.reporting.run_status import (
    Evidence,
    RunState,
    advice,
    read_states,
    state_of,
    status_details,
    status_json,
    status_table,
)
from t2i_hpc.runs.run_directory import locked
from t2i_hpc.runs.sessions import Session, read_sessions, write_begin, write_end

CONFIG = "engine:\n  images: 400\n  minutes: null\n"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run of 400 images that has made a checkpoint at 100 and steps up to 160."""
    folder = tmp_path / "demo-1a2b3c4d"
    (folder / "checkpoints" / "0000000100").mkdir(parents=True)
    (folder / "config.yaml").write_text(CONFIG)
    for images in (80, 160):
        row = {"images": images, "seconds": images / 10, "images_per_second": 12.0}
        append_json_line(folder / "metrics.jsonl", row)
    return folder


def job(number: str, run: Path, task: str = "train") -> JobRecord:
    log, submitted = str(run / f"{number}.log"), "2999-01-01T00:00:00+00:00"
    return JobRecord(number, "demo", task, (), str(run), log, {}, submitted)


def session(run: Path, outcome: str | None = None, message: str = "", number: str = "") -> None:
    name = write_begin(run, job=number, restart=0, hosts=("n1", "n2"), ranks=4, pid=1, images=0)
    if outcome:
        write_end(run, name, outcome, 100, message=message)


def concluded(run: Path, states: Mapping[str, str], *jobs: JobRecord) -> tuple[str, str]:
    """Return state and message by Slurm's states of some jobs."""
    known = {number: JobState(number, word, "Resources") for number, word in states.items()}
    return state_of(Evidence(run, jobs, known, read_sessions(run)))


def only(run: Path) -> RunState:
    (state,) = read_states([run])
    return state


def test_ends_are_what_the_last_session_says(run: Path) -> None:
    assert concluded(run, {}) == ("stopped", "")
    session(run, "lost", "n2 died")
    assert concluded(run, {}) == ("lost", "n2 died")
    session(run, "done")
    assert concluded(run, {}) == ("done", "")


def test_a_session_without_an_end_runs_while_it_holds_the_lock(run: Path) -> None:
    session(run)
    with locked(run):
        assert concluded(run, {}) == ("running", "")
    state, message = concluded(run, {})
    assert state == "lost"
    assert message == "stopped without saving on n1, n2"


def test_slurm_is_believed_about_jobs_that_live(run: Path) -> None:
    session(run, "stopped", number="7")
    assert concluded(run, {"7": "PENDING"}, job("7", run)) == ("waiting", "Resources")
    assert concluded(run, {"7": "COMPLETING"}, job("7", run)) == ("running", "")
    living = {"7": "COMPLETED", "8": "RUNNING", "9": "PENDING"}
    assert concluded(run, living, *(job(each, run) for each in "789"))[0] == "running"


def test_files_are_believed_about_jobs_that_ended(run: Path) -> None:
    session(run, "done", number="7")
    assert concluded(run, {"7": "FAILED"}, job("7", run)) == ("done", "")
    session(run, None, number="7")
    assert concluded(run, {"7": "NODE_FAIL"}, job("7", run))[0] == "lost"
    assert "(Slurm: NODE_FAIL)" in concluded(run, {"7": "NODE_FAIL"}, job("7", run))[1]
    assert concluded(run, {"7": "CANCELLED"}, job("7", run))[0] == "stopped"


def test_a_job_without_a_session_ended_as_slurm_and_its_log_say(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session(run, "stopped", number="7")
    (run / "8.log").write_text("t2i_hpc.train: no shards in /data\nsrun: error: n1: task 0\n")
    jobs = job("7", run), job("8", run)
    assert concluded(run, {"8": "FAILED"}, *jobs) == ("failed", "t2i_hpc.train: no shards in /data")
    (run / "8.log").unlink()
    Path(jobs[-1].log).touch()
    assert concluded(run, {"8": "TIMEOUT"}, *jobs) == ("failed", "job 8 ended as TIMEOUT")
    assert concluded(run, {"8": "CANCELLED"}, *jobs)[0] == "stopped"
    earlier = replace(job("6", run), submitted="2001-01-01T00:00:00+00:00")
    assert concluded(run, {"6": "FAILED"}, earlier) == ("stopped", "")
    monkeypatch.setenv("PATH", "")
    assert state_of(
        Evidence(run, jobs, {}, read_sessions(run), {"8"}, "squeue is not installed")
    ) == (
        "unknown",
        "nobody knows whether job 8 still waits or runs: squeue is not installed",
    )


@pytest.mark.parametrize(
    ("outcome", "here", "state"),
    [
        (None, "squeue", "unknown"),
        ("stopped", "squeue", "unknown"),  # it may have been requeued
        ("done", "squeue", "done"),
        ("failed", "squeue", "failed"),
        (None, "", "unknown"),
        ("stopped", "", "stopped"),  # a run that was copied to a machine without Slurm
    ],
)
def test_a_job_without_an_answer_is_not_over(
    run: Path, monkeypatch: pytest.MonkeyPatch, outcome: str | None, here: str, state: str
) -> None:
    session(run, outcome, number="7")
    monkeypatch.setattr("t2i_hpc.reporting.run_status.has_client", lambda name: name == here)
    known = Evidence(run, [job("7", run)], {}, read_sessions(run), {"7"}, "no answer")
    assert state_of(known)[0] == state


def test_background_evaluations_are_not_the_training(run: Path) -> None:
    session(run, "done", number="7")
    jobs = [job("7", run), *(job(f"9_{n}", run, "evaluate") for n in range(3))]
    states = {f"9_{n}": JobState(f"9_{n}", "PENDING") for n in range(3)}
    known = Evidence(run, jobs, states, read_sessions(run))
    assert state_of(known)[0] == "done"
    trained_here = Evidence(run, jobs[1:], states, read_sessions(run))
    assert state_of(trained_here)[0] == "done"
    shards = Evidence(run, jobs[1:], states, ())
    assert state_of(shards)[0] == "waiting"


def test_a_script_submitted_by_hand_is_known_by_its_session(run: Path) -> None:
    session(run, "stopped", number="7")
    assert concluded(run, {"7": "PENDING"}) == ("waiting", "Resources")
    assert find_jobs(run) == ["7"]


def test_a_job_without_a_log_may_be_on_a_node_that_does_not_see_it(run: Path) -> None:
    state, message = concluded(run, {"8": "FAILED"}, job("8", run))
    assert state == "failed"
    assert f"without a line in {run / '8.log'}" in message
    assert "does not see that folder" in message


def test_a_job_that_waits_to_resume_a_running_one_is_not_the_run(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session(run, number="7")
    record_jobs(run, [job("7", run), replace(job("8", run), predecessor="7")])
    states = {
        "7": JobState("7", "RUNNING", "", "n[1-2]"),
        "8": JobState("8", "PENDING", "Dependency"),
    }
    monkeypatch.setattr(run_status, "ask_states", lambda jobs: Answer(states))
    state = only(run)
    assert (state.state, state.job, state.nodes) == ("running", "7", "n[1-2]")
    assert state.log == str(run / "7.log")


def test_progress_is_what_a_restart_resumes_from(run: Path) -> None:
    session(run)
    with locked(run):
        state = only(run)
        assert (state.state, state.images, state.saved, state.share) == ("running", 160, 100, 0.4)
        assert state.remaining == pytest.approx(240 / 12)
    state = only(run)
    assert (state.state, state.images, state.share) == ("lost", 100, 0.25)
    assert state.remaining is None
    assert (state.speed, state.goal, state.nodes) == (12.0, 400, "n1,n2")


def test_progress_in_minutes_counts_where_that_end_comes_first(run: Path) -> None:
    (run / "config.yaml").write_text(CONFIG.replace("null", "0.5"))
    assert only(run).share == pytest.approx(16 / 30)
    (run / "config.yaml").write_text("engine: [")
    assert (only(run).share, only(run).goal) == (None, None)


def test_the_table_shows_what_there_is(run: Path, tmp_path: Path) -> None:
    session(run, "failed", "the disk is full")
    session(run, "failed", "the disk is full")
    score = {"metric": "FID", "value": 19.371, "n": 30000, "images": 100}
    append_json_line(run / "scores.jsonl", score)
    other = tmp_path / "other"
    record_jobs(other, [job("7", other)])
    lines = status_table(read_states([run, other]))
    assert lines[0].split() == ["run", "state", "done", "images", "img/s", "restarts", *HEADS]
    assert lines[1].split()[:6] == ["demo-1a2b3c4d", "failed", "25%", "100", "12.0", "1"]
    assert lines[1].endswith("FID 19.37 (N 30,000) after 100 images")
    assert lines[-2].startswith("demo-1a2b3c4d: the disk is full")
    assert lines[-1].startswith("other: ")


HEADS = ("job", "nodes", "score")


def test_the_details_say_what_to_do(run: Path) -> None:
    session(run, "failed", "the disk is full")
    lines = dict(line.split("  ", 1) for line in status_details(only(run)))
    lines = {name: text.strip() for name, text in lines.items()}
    assert lines["state"] == "failed: the disk is full"
    assert lines["progress"] == "25% 100 of 400 images at 12.0 img/s"
    assert "resumes from the checkpoint of 100 images" in lines["next"]
    assert any("4 ranks on n1,n2: failed at 100 images" in text for text in lines.values())


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ("new", "launch"),
        ("waiting", "t2i_hpc.cancel"),
        ("running", "stop"),
        ("stopped", "resumes from the checkpoint of 100 images"),
        ("done", "t2i_hpc.evaluate run="),
        ("lost", "resumes from"),
    ],
)
def test_every_state_has_an_advice(run: Path, state: str, words: str) -> None:
    assert words in advice(replace(only(run), state=state))


def test_folders_of_runs_are_looked_into(run: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    record_jobs(other, [job("7", other)])
    (tmp_path / "notes").mkdir()
    assert find_runs([str(tmp_path)]) == [run, other]
    assert find_runs([str(other), str(run), str(tmp_path)]) == [other, run]


def test_json_is_for_programs(run: Path) -> None:
    session(run, "done")
    (row,) = json.loads(status_json(read_states([run])))
    assert (row["run"], row["state"], row["share"], row["restarts"]) == (str(run), "done", 1.0, 0)
    assert Session(**row["sessions"][0]).outcome == "done"


def test_the_ends_of_long_files(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("".join(f'{{"images": {n}}}\n' for n in range(20_000)) + '{"images": 7')
    assert last_row(path) == {"images": 19_999}
    path.write_text("step 1\n" * 20_000 + "RuntimeError: no such color\n\nsrun: done\n")
    assert last_error(path) == "RuntimeError: no such color"
    path.write_text("step 1\nstep 2\n\n")
    assert last_error(path) == "step 2"
    assert last_error(tmp_path / "nowhere") == ""
    assert last_row(tmp_path / "nowhere") == {}
