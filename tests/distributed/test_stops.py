"""Sessions that stop before their end: for signals, files and time that runs out."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest

from t2i_hpc.common.errors import STOPPED
from t2i_hpc.common.files import read_json_lines
from t2i_hpc.runs.layout import list_checkpoints
from tests.support.preloaded import ENDLESS, Nursery, start_endless
from tests.support.training import TINY, only_run


def saved_last(runs: Path) -> int:
    """Return the images of the last checkpoint, which are those of the last step."""
    run = only_run(runs)
    saved = list_checkpoints(run)[-1]
    assert read_json_lines(run / "metrics.jsonl")[-1]["images"] == saved
    return saved


@pytest.mark.parametrize("number", [0, 2])
def test_a_signal_to_one_rank_stops_all_at_the_same_step(
    number: int, home: Nursery, shards: Path, tmp_path: Path
) -> None:
    ranks = start_endless(home, shards, tmp_path)
    ranks[number].send(signal.SIGUSR1)
    assert [rank.wait() for rank in ranks] == 3 * [STOPPED]
    saved = saved_last(tmp_path)
    assert saved >= 18
    assert not any("t2i_hpc: " in rank.log.read_text() for rank in ranks)
    straight = tmp_path / "again"
    straight.mkdir()
    arguments = [
        f"data.path={shards}",
        f"runs={tmp_path}",
        *TINY,
        *ENDLESS,
        f"engine.images={saved}",
    ]
    again = home.train_world(3, arguments, straight)
    assert [rank.wait() for rank in again] == [0, 0, 0]


def test_files_save_and_stop_by_hand(home: Nursery, shards: Path, tmp_path: Path) -> None:
    (rank,) = start_endless(home, shards, tmp_path, world=1)
    run = only_run(tmp_path)
    (run / "save").touch()
    end = time.monotonic() + 60
    while len(list_checkpoints(run)) < 2:
        assert time.monotonic() < end
        time.sleep(0.02)
    assert rank.poll() is None
    assert not (run / "save").exists()
    (run / "stop").touch()
    assert rank.wait() == STOPPED
    assert "the file stop: stopping to save" in rank.log.read_text()
    assert not (run / "stop").exists()
    assert saved_last(tmp_path) > 18


@pytest.mark.parametrize("by", ["engine.max_minutes", "SLURM_JOB_END_TIME"])
def test_a_session_stops_before_its_time_is_up(
    by: str, home: Nursery, shards: Path, tmp_path: Path
) -> None:
    arguments, variables = [f"data.path={shards}", f"runs={tmp_path}", *TINY, *ENDLESS], {}
    if by == "engine.max_minutes":
        arguments.append(f"{by}=0.08")
    else:
        variables[by] = str(int(time.time()) + 10)
    rank = home.train(arguments, tmp_path / "log", variables)
    assert rank.wait() == STOPPED, rank.log.read_text()
    assert " s: stopping to save" in rank.log.read_text().partition("time limit in ")[2]
    assert saved_last(tmp_path) > 0
