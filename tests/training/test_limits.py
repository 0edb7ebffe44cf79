"""When a session stops: ends of the training, requests, and time that runs out."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from t2i_hpc.config.engine import EngineConfig
from t2i_hpc.runs.checkpoint import TrainingProgress
from t2i_hpc.training.progress import PlainLines, RunOutput
from t2i_hpc.training.stopping import Limits, SessionClock, StopRequest


def limits(folder: Path, config: EngineConfig | None = None) -> Limits:
    return Limits(config or EngineConfig(), StopRequest(), RunOutput(folder, PlainLines()))


def test_a_training_ends_after_images_or_minutes(tmp_path: Path) -> None:
    watched = limits(tmp_path, EngineConfig(images=100, minutes=2))
    assert not watched.reached(TrainingProgress(99, 9, 119))
    assert watched.reached(TrainingProgress(100, 10, 0))
    assert watched.reached(TrainingProgress(0, 0, 120))


@pytest.mark.parametrize("name", ["stop", "save"])
def test_a_file_is_obeyed_once_and_deleted(name: str, tmp_path: Path) -> None:
    (tmp_path / name).touch()
    watched = limits(tmp_path)
    assert watched.stop(TrainingProgress()) is (name == "stop")
    assert [watched.save_is_asked_for() for _ in range(2)] == [name == "save", False]
    assert not (tmp_path / name).exists()


def test_files_are_looked_for_once_a_second(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 50.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    watched = limits(tmp_path)
    watched.stop(TrainingProgress())
    (tmp_path / "stop").touch()
    now = 50.9
    assert not watched.stop(TrainingProgress())
    now = 51.1
    assert watched.stop(TrainingProgress())


def test_other_ranks_leave_files_and_the_clock_to_rank_0(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "stop").touch()
    monkeypatch.chdir(tmp_path)
    watched = Limits(EngineConfig(max_minutes=0.01), StopRequest(), None)
    assert not watched.stop(TrainingProgress())
    assert (tmp_path / "stop").exists()


def test_without_a_last_instant_there_is_time() -> None:
    clock = SessionClock(None)
    assert clock.left == float("inf")
    assert clock.longest_save == 30.0
    assert not clock.is_late()


def test_the_earlier_end_counts() -> None:
    assert 595 < SessionClock(60.0, 600.0).left <= 600
    assert 295 < SessionClock(5.0, 600.0).left <= 300


def test_the_margin_is_learnt(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    clock = SessionClock(10.0)
    assert clock.margin == 2 * 30 + 3  # a twentieth of ten minutes
    for end in (50.0, 54.0, 60.0, 61.0):  # the first step of a session is no measure
        now = end
        clock.step_done()
    assert clock.margin == 2 * 30 + 2 * 6 + 3
    for seconds in (5.0, 8.0, 7.0):
        clock.saved(seconds)
    assert clock.margin == 2 * 8 + 2 * 6 + 3
    now = 600 - 31.5
    assert not clock.is_late()
    now = 600 - 30.5
    assert clock.is_late()


def test_a_save_is_timed_until_the_checkpoint_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    watched = limits(tmp_path)
    watched.saving(TrainingProgress(8))
    now = 4.0
    watched.stop(TrainingProgress(12))
    assert watched.clock.longest_save == 30.0
    (tmp_path / "checkpoints" / f"{8:010d}").mkdir(parents=True)
    now = 6.0
    watched.stop(TrainingProgress(16))
    assert watched.clock.longest_save == 6.0
