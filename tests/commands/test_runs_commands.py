"""The commands status, cancel and table on a training of this machine, and what they refuse."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from t2i_hpc.cancel import COMMAND as CANCEL
from t2i_hpc.cli.command import RunsCommand, gather_runs
from t2i_hpc.common.errors import STOPPED
from t2i_hpc.common.files import read_json_lines
from t2i_hpc.runs.layout import list_checkpoints
from t2i_hpc.status import COMMAND as STATUS
from t2i_hpc.table import COMMAND as TABLE
from tests.support.training import TINY, environment, only_run

Training = tuple[subprocess.Popen[bytes], Path]


def wait_until(holds: Callable[[], object], seconds: float = 90.0) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def training(shards: Path, elsewhere: Path) -> Iterator[Training]:
    """A training that runs for long, in ``runs`` of the current folder."""
    words = [f"data.path={shards}", *TINY, "engine.images=4000000"]
    words += ["engine.samples_every_images=4000000"]
    command = [sys.executable, "-m", "t2i_hpc.train", *words]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, env=environment()) as process:
        try:
            wait_until(lambda: any(map(read_json_lines, Path("runs").glob("*/metrics.jsonl"))))
            yield process, only_run(Path("runs"))
        finally:
            process.kill()


def test_a_training_here_is_seen_and_cancelled(
    training: Training, capsys: pytest.CaptureFixture[str]
) -> None:
    process, run = training
    assert STATUS.main([str(run), "format=json"]) == 0
    (state,) = json.loads(capsys.readouterr().out)
    assert (state["state"], state["job"], state["message"]) == ("running", "", "")
    assert state["remaining"] > 0
    assert state["sessions"][0]["pid"] == process.pid

    process.send_signal(signal.SIGSTOP)
    assert CANCEL.main([str(run), "wait=0.6"]) == 2
    assert f"the training in {run} has not ended after 1 s" in capsys.readouterr().err
    (run / "stop").unlink()
    process.send_signal(signal.SIGCONT)

    assert CANCEL.main([str(run), "wait=60"]) == 0
    assert process.wait(10) == STOPPED
    said = capsys.readouterr().out
    assert f"{run}: stopped, saved at {list_checkpoints(run)[-1]:,} images" in said
    assert list_checkpoints(run)[-1] > 0
    assert not (run / "stop").exists()
    assert CANCEL.main([str(run)]) == 0
    assert "nothing to cancel" in capsys.readouterr().out
    assert STATUS.main([]) == 0
    assert "run the same command again: it resumes from the checkpoint" in capsys.readouterr().out
    assert TABLE.main([str(run), "format=csv", "output=new/table.csv"]) == 0
    lines = Path("new/table.csv").read_text().splitlines()
    assert lines[0] == "run,state,images,images_per_second"
    assert lines[1].startswith(f"{run.name},stopped,{list_checkpoints(run)[-1]},")


@pytest.mark.parametrize(
    ("command", "arguments", "said"),
    [
        (STATUS, ["nowhere"], "nowhere: there is no such folder; runs are in runs/<name>-<hash>"),
        (STATUS, [], "there is no folder runs: name a run"),
        (STATUS, ["."], "holds no run yet"),
        (STATUS, ["format=yaml"], "format=yaml is not offered"),
        (CANCEL, [], "no run is named"),
        (TABLE, [], "no runs are named"),
    ],
)
def test_refusals(
    command: RunsCommand[Any],
    arguments: list[str],
    said: str,
    elsewhere: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert command.main(arguments) == 2
    captured = capsys.readouterr()
    assert said in captured.err
    assert captured.err.count("\n") == 1


def test_arguments_without_a_key_are_runs() -> None:
    words = ["a b/c", "format=json", "run=d", '"e', "--config-dir", "folder"]
    gathered = ["format=json", "--config-dir", "folder", r'run=["a b/c","d","\"e"]']
    assert gather_runs(words) == gathered
    assert gather_runs(["run=[a,b]"]) == ["run=[a,b]"]


def test_a_folder_may_have_an_equals_sign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lr=0.1" / "runs").mkdir(parents=True)
    (tmp_path / "wait=9").mkdir()
    words = ["lr=0.1/runs", "lr=0.1", "lr=0.2", "wait=9"]
    gathered = ["lr=0.2", "wait=9", 'run=["lr=0.1/runs","lr=0.1"]']
    assert gather_runs(words, ["run", "wait"]) == gathered
