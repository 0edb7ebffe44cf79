"""The record of real sessions: a lost rank with its host, a stop, and a kill of the first rank."""

from __future__ import annotations

import signal
import socket
import time
from pathlib import Path

from t2i_hpc.common.errors import LOST_RANK, STOPPED
from t2i_hpc.runs.layout import list_checkpoints
from t2i_hpc.runs.sessions import read_sessions
from tests.support.preloaded import ENDLESS, Nursery, Rank
from tests.support.training import TINY, only_run


def be_on_another_node() -> None:
    """Let this process believe that its node has another name."""
    socket.gethostname = lambda: "n2"


def start(home: Nursery, shards: Path, runs: Path, number: int) -> list[Rank]:
    """Start the session of that number, and wait until it is recorded."""
    arguments = [f"data.path={shards}", f"runs={runs}", *TINY, *ENDLESS]
    ranks = home.train_world(2, arguments, runs, {1: be_on_another_node})
    end = time.monotonic() + 90
    while sum(len(read_sessions(path.parent)) for path in runs.glob("*/config.yaml")) < number:
        assert time.monotonic() < end
        assert all(rank.poll() is None for rank in ranks), ranks[0].log.read_text()
        time.sleep(0.02)
    return ranks


def test_three_sessions_end_in_three_ways(home: Nursery, shards: Path, tmp_path: Path) -> None:
    ranks = start(home, shards, tmp_path, 1)
    ranks[1].send(signal.SIGKILL)
    assert ranks[0].wait(60) == LOST_RANK

    ranks = start(home, shards, tmp_path, 2)
    run = only_run(tmp_path)
    (run / "stop").touch()
    assert [rank.wait(60) for rank in ranks] == [STOPPED, STOPPED]

    ranks = start(home, shards, tmp_path, 3)
    ranks[0].send(signal.SIGKILL)
    assert ranks[1].wait(60) == LOST_RANK

    lost, stopped, cut = read_sessions(run)
    assert [each.outcome for each in (lost, stopped, cut)] == ["lost", "stopped", None]
    assert lost.hosts == (socket.gethostname(), "n2")
    assert lost.lost_hosts == ("n2",)
    assert "rank 1" in lost.message
    assert "died" in lost.message
    assert (stopped.ranks, stopped.first_images) == (2, 0)
    assert stopped.last_images == cut.first_images == list_checkpoints(run)[-1] > 0
