"""Trackers are told what a run's files say: once, in order, and at no cost to the training."""

from __future__ import annotations

import os
import sqlite3
import sys
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from PIL import Image

from t2i_hpc.common.errors import ConfigurationError
from t2i_hpc.common.files import append_json_line
from t2i_hpc.training import trackers
from t2i_hpc.training.trackers import Followers, check_trackers, curves


class Book:
    """A tracker that keeps what it is told in lists that outlive it."""

    def __init__(self, told: list[Any], durable: bool = True) -> None:
        self.told, self.durable = told, durable

    def log(self, values: Mapping[str, float], images: int) -> None:
        self.told.append((images, dict(values)))

    def show(self, name: str, picture: Path, images: int) -> None:
        self.told.append((images, f"{name}/{picture.name}"))

    def close(self) -> None:
        self.told.append("closed")


def row(images: int) -> dict[str, Any]:
    speeds = {"images_per_second": float(images), "data_wait": float("nan")}
    return {"images": images, "step": 1, "losses": {"generator/adversarial": 0.5}, **speeds}


def make_run(folder: Path) -> Path:
    run = folder / "birds-1a2b3c4d"
    (run / "samples").mkdir(parents=True)
    for images in (4, 8):
        append_json_line(run / "metrics.jsonl", row(images))
    Image.new("RGB", (4, 4)).save(run / "samples" / "0000000004.png")
    append_json_line(run / "scores.jsonl", score(4))
    return run


def score(images: int) -> dict[str, Any]:
    return {"metric": "FID", "protocol": "p1", "value": 9.0, "images": images}


def follow(run: Path, *names: str) -> list[str]:
    """Follow a run as a session does, to its end; return what was said."""
    said: list[str] = []
    followers = Followers(run, names, said.append)
    followers.wake()
    followers.close()
    return said


@pytest.mark.parametrize("durable", [True, False])
def test_a_later_session_tells_what_the_one_before_missed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, durable: bool
) -> None:
    run, told = make_run(tmp_path), list[Any]()
    monkeypatch.setattr(trackers, "TRACKERS", {"book": lambda _: Book(told, durable)})
    assert follow(run, "book", "tensorboard") == []
    values = {"generator/adversarial": 0.5}
    assert told == [
        (4, {**values, "speed/images_per_second": 4.0}),
        (8, {**values, "speed/images_per_second": 8.0}),
        (4, {"scores/FID p1": 9.0}),
        (4, "samples/0000000004.png"),
        "closed",
    ]
    told.clear()
    # The run fell back to a checkpoint of 4 images: steps that were told come again.
    (run / "metrics.jsonl").write_text("")
    for images in (4, 8, 12):
        append_json_line(run / "metrics.jsonl", row(images))
    append_json_line(run / "scores.jsonl", score(8))
    assert follow(run, "book") == []
    assert [each[0] for each in told[:-1]] == [12, 8]


def test_a_tracker_that_fails_is_left_out_and_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, told = make_run(tmp_path), list[Any]()

    class Bad(Book):
        def log(self, values: Mapping[str, float], images: int) -> None:
            raise SystemExit("no room")

    def absent(run: Path) -> Book:
        raise OSError("no server")

    made = {"bad": lambda _: Bad(told), "absent": absent, "book": lambda _: Book(told)}
    monkeypatch.setattr(trackers, "TRACKERS", made)
    said = follow(run, "bad", "absent", "book")
    assert "tracker absent failed (OSError: no server): training goes on" in said[0]
    assert "tracker bad failed (SystemExit: no room)" in said[1]
    assert told[-1] == "closed"
    assert len(told) == 5
    assert not (run / "trackers" / "bad.json").exists()


def test_a_line_becomes_curves() -> None:
    line = {"images": 8, "losses": {"g/a": 1.0}, "gradient_norms": {"g": 2.0}, "mfu": 0.4}
    assert dict(curves(line)) == {"g/a": 1.0, "gradient_norms/g": 2.0, "speed/mfu": 0.4}


def test_a_package_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    check_trackers(["tensorboard"])
    monkeypatch.setattr(trackers, "find_spec", lambda name: None)
    with pytest.raises(ConfigurationError, match="trackers names mlflow, whose package mlflow"):
        check_trackers(["tensorboard", "mlflow"])


def two_sessions(run: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Follow a run with a real package, twice, with a step and a score between."""
    for variable in ("WANDB_MODE", "MLFLOW_TRACKING_URI", "TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.delenv("TRACKIO_DIR", raising=False)
    assert follow(run, name) == []
    append_json_line(run / "metrics.jsonl", row(12))
    append_json_line(run / "scores.jsonl", score(8))
    assert follow(run, name) == []


def test_mlflow_has_one_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mlflow", reason="the extra trackers is not installed")
    pytest.importorskip("sqlalchemy", reason="the extra trackers is not installed")
    run = make_run(tmp_path)
    two_sessions(run, "mlflow", monkeypatch)
    with sqlite3.connect(run / "mlflow.db") as store:
        assert store.execute("select name, status from runs").fetchall() == [(run.name, "FINISHED")]
        points = store.execute("select key, step, value from metrics order by step, key").fetchall()
    speeds = [(step, value) for key, step, value in points if key == "speed/images_per_second"]
    assert speeds == [(4, 4.0), (8, 8.0), (12, 12.0)]
    assert [(s, v) for key, s, v in points if key == "scores/FID p1"] == [(4, 9.0), (8, 9.0)]
    assert len(list((run / "mlflow").rglob("0000000004.png"))) == 1


def test_trackio_has_one_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if find_spec("trackio") is None:  # its import would read where it writes too early
        pytest.skip("the extra trackers is not installed")
    run = make_run(tmp_path)
    two_sessions(run, "trackio", monkeypatch)
    (store,) = (run / "trackio").glob("*.db")
    with sqlite3.connect(store) as opened:
        found = opened.execute("select run_name, step, metrics from metrics order by step, id")
        points = found.fetchall()
    assert {name for name, _, _ in points} == {run.name}
    assert sorted({step for _, step, _ in points}) == [4, 8, 12]
    assert sum(b"speed/images_per_second" in values for _, _, values in points) == 3


class StandIn(ModuleType):
    """What of trackio 0.43's documented interface a run uses; the package wants Pillow < 13."""

    def __init__(self) -> None:
        super().__init__("trackio")
        self.told: list[tuple[Any, ...]] = []

    def init(
        self,
        project: str,
        name: str | None = None,
        *,
        resume: str = "never",
        embed: bool = True,
        auto_log_gpu: bool | None = None,
        auto_log_cpu: bool | None = None,
    ) -> StandIn:
        self.told.append((project, name, resume, embed, auto_log_gpu, auto_log_cpu))
        return self

    def log(self, metrics: dict[str, Any], step: int | None = None) -> None:
        self.told += [(name, value, step) for name, value in metrics.items()]

    def Image(self, value: str, caption: str | None = None) -> str:  # noqa: N802
        return Path(value).name

    def finish(self) -> None:
        self.told.append(("finished",))


def test_trackio_is_told_by_its_documented_interface(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same run in both sessions, nothing twice; the test above has what is made of it."""
    monkeypatch.setenv("TRACKIO_DIR", "")  # so that it is gone after the test
    made = StandIn()
    monkeypatch.setitem(sys.modules, "trackio", made)
    run = make_run(tmp_path)
    two_sessions(run, "trackio", monkeypatch)
    assert os.environ["TRACKIO_DIR"] == str(run.resolve() / "trackio")
    opened = ("t2i_hpc", run.name, "allow", False, False, False)
    assert [told for told in made.told if len(told) > 3] == 2 * [opened]
    speeds = [told[1:] for told in made.told if told[0] == "speed/images_per_second"]
    assert speeds == [(4.0, 4), (8.0, 8), (12.0, 12)]
    assert [told[1:] for told in made.told if told[0] == "samples"] == [("0000000004.png", 4)]
    assert made.told.count(("finished",)) == 2


def test_wandb_is_offline_under_one_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb", reason="the extra trackers is not installed")
    run = make_run(tmp_path)
    two_sessions(run, "wandb", monkeypatch)
    files = sorted((run / "wandb").glob("offline-run-*/*.wandb"))
    assert [path.name for path in files] == [f"run-{run.name}.wandb"] * 2
    whole = b"".join(path.read_bytes() for path in files)
    assert whole.count(b"speed/images_per_second") >= 3
    assert whole.count(b"scores/FID p1") >= 2
