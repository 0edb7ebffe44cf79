"""Who is lost, judged from beats; and the connection between ranks that carries them."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch.distributed as dist

from t2i_hpc.common.exit_codes import LOST_RANK
from t2i_hpc.training.heartbeat import Hub, Spoke, came_from_others
from t2i_hpc.training.heartbeat_monitor import SILENCE_TICKS, Beat, HeartbeatMonitor

PATIENCE = 30


def beat(rank: int, mark: int, *, waits: bool = False, farewell: str | None = None) -> Beat:
    return Beat(rank, f"node{rank}", 100 + rank, mark, f"step {mark}", "", waits, farewell)


def live(judge: HeartbeatMonitor, seconds: int, *beats: Beat) -> str | None:
    """Let seconds pass in which these beats are heard; return the last verdict."""
    verdict = None
    for _ in range(seconds):
        for each in beats:
            judge.watches[each.rank].hear(each)
        verdict = verdict or judge.tick()
    return verdict


def test_ranks_that_make_progress_are_not_accused() -> None:
    judge = HeartbeatMonitor(2, PATIENCE)
    for step in range(5):
        assert live(judge, PATIENCE - 5, beat(0, step), beat(1, step, waits=True)) is None


def test_a_closed_connection_is_a_death() -> None:
    judge = HeartbeatMonitor(3, PATIENCE)
    live(judge, 2, beat(0, 7), beat(1, 7), beat(2, 7))
    judge.watches[2].gone = True
    verdict = live(judge, 1, beat(0, 7), beat(1, 7)) or ""
    assert verdict.startswith("rank 2 (node2, pid 102), last at step 7, died; the checkpoints")


def test_silence_is_noticed_after_its_limit() -> None:
    judge = HeartbeatMonitor(2, PATIENCE)
    live(judge, 1, beat(0, 7), beat(1, 7))
    assert live(judge, SILENCE_TICKS - 1, beat(0, 8)) is None
    assert "rank 1 (node1, pid 101)" in (live(judge, 2, beat(0, 8)) or "")


def test_the_rank_that_is_behind_hangs() -> None:
    judge = HeartbeatMonitor(3, PATIENCE)
    beats = beat(0, 9, waits=True), beat(1, 8), beat(2, 9, waits=True)
    assert live(judge, PATIENCE - 1, *beats) is None
    verdict = live(judge, 3, *beats) or ""
    assert verdict.startswith(
        "rank 1 (node1, pid 101), last at step 8, made no progress for 30 s (engine.timeout)"
    )


def test_among_equals_the_rank_that_waits_for_nobody_hangs() -> None:
    judge = HeartbeatMonitor(3, PATIENCE)
    beats = beat(0, 9, waits=True), beat(1, 9, waits=True), beat(2, 9)
    verdict = live(judge, PATIENCE + 2, *beats) or ""
    assert "rank 2" in verdict
    assert "rank 1" not in verdict


def test_work_of_all_may_last_while_nobody_waits() -> None:
    assert live(HeartbeatMonitor(2, PATIENCE), 3 * PATIENCE, beat(0, 1), beat(1, 1)) is None


def test_a_rank_that_is_done_may_be_silent() -> None:
    judge = HeartbeatMonitor(2, PATIENCE)
    live(judge, 1, beat(1, 9, farewell=""))
    judge.watches[1].gone = True
    assert live(judge, 2 * SILENCE_TICKS, beat(0, 9)) is None
    assert judge.all_left(but=0)


def test_an_error_is_passed_on_when_others_had_time_to_have_it_too() -> None:
    judge = HeartbeatMonitor(2, PATIENCE)
    left = beat(1, 9, farewell="the disk is full")
    assert live(judge, 3, beat(0, 9), left) is None
    verdict = live(judge, 2, beat(0, 9)) or ""
    assert verdict.startswith("rank 1 (node1, pid 101) left at step 9: the disk is full;")


def test_many_lost_ranks_are_counted() -> None:
    judge = HeartbeatMonitor(9, PATIENCE)
    verdict = live(judge, SILENCE_TICKS + 2, *[beat(rank, 3) for rank in range(2)]) or ""
    assert "rank 5" in verdict
    assert "and 3 more gave no sign of life" in verdict


def test_where_a_rank_is_stands_in_the_sentence() -> None:
    judge = HeartbeatMonitor(1, PATIENCE)
    judge.watches[0].hear(replace(beat(0, 3), where="data/loader.py:7"))
    judge.watches[0].gone = True
    assert "last at step 3 (data/loader.py:7), died" in (judge.tick() or "")


@contextmanager
def tied(size: int) -> Iterator[tuple[Hub, list[Spoke]]]:
    hub = Hub(size, 60.0)
    spokes = [Spoke(rank, "127.0.0.1", hub.port, hub.secret, 5.0) for rank in range(1, size)]
    yield hub, spokes
    for spoke in spokes:
        spoke.close()
    hub.close()


def wait_for(hub: Hub, rank: int, doing: str) -> None:
    end = time.monotonic() + 20
    while hub._judge.watches[rank].beat.doing != doing:
        assert time.monotonic() < end, hub._judge.watches[rank]
        time.sleep(0.02)


def test_rank_0_hears_what_the_others_do() -> None:
    with tied(3) as (hub, spokes):
        for spoke in spokes:
            spoke.doing("step 4, saving")
            spoke.doing("step 5, phase generator")
        for rank in (1, 2):
            wait_for(hub, rank, "step 5, phase generator")
            assert hub._judge.watches[rank].beat.mark == 2


def test_strangers_are_not_believed() -> None:
    with tied(2) as (hub, spokes):
        lie = {"secret": hub.secret + 1, "rank": 1, "doing": "a lie", "farewell": "a lie"}
        for words in (b"GET / HTTP/1.1\r\n\r\n", b"7\n", json.dumps(lie).encode() + b"\n"):
            with socket.create_connection(("127.0.0.1", hub.port), 5) as stranger:
                stranger.settimeout(20)
                stranger.sendall(words)
                assert stranger.recv(1) == b""  # shown the door
        spokes[0].doing("the truth")
        wait_for(hub, 1, "the truth")
        assert not hub._judge.watches[1].left


LEAVE = """
import sys, time
from t2i_hpc.training.heartbeat import Spoke
Spoke(1, "127.0.0.1", int(sys.argv[1]), int(sys.argv[2]), 5.0)
time.sleep(60)
"""


@pytest.mark.parametrize("error", [None, ValueError("no such color")])
def test_a_rank_left_behind_follows_an_error_but_not_a_good_end(error: Exception | None) -> None:
    hub = Hub(2, 60.0)
    words = [sys.executable, "-c", LEAVE, str(hub.port), str(hub.secret)]
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True) as other:
        end = time.monotonic() + 60
        while not hub._judge.watches[1].beat.pid:
            assert time.monotonic() < end
            time.sleep(0.02)
        hub.close(error)
        if error is None:
            with pytest.raises(subprocess.TimeoutExpired):
                other.wait(2)
            other.kill()
        else:
            assert other.wait(20) == LOST_RANK


@pytest.mark.parametrize(
    ("error", "from_others"),
    [
        (RuntimeError("[third_party/gloo/pair.cc:534] Connection closed by peer"), True),
        (dist.DistBackendError("NCCL communicator was aborted"), True),
        (RuntimeError("shapes cannot be multiplied"), False),
        (NotImplementedError("gloo"), False),
        (ValueError("Broken pipe"), False),
    ],
)
def test_errors_of_collectives_are_known(error: Exception, from_others: bool) -> None:
    assert came_from_others(error) is from_others
