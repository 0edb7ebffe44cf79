"""Which ranks are lost or hung, found from their reports; the connection that carries these."""

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

from t2i_hpc.common.errors import LOST_RANK
from t2i_hpc.training import heartbeat_monitor
from t2i_hpc.training.heartbeat import HeartbeatClient, HeartbeatServer, is_broken_collective
from t2i_hpc.training.heartbeat_monitor import SILENCE_TICKS, HeartbeatMonitor, RankReport

TIMEOUT = 30


def report(
    rank: int, stages: int, *, waits: bool = False, exit_reason: str | None = None
) -> RankReport:
    return RankReport(
        rank, f"node{rank}", 100 + rank, stages, f"step {stages}", "", waits, exit_reason
    )


def live(monitor: HeartbeatMonitor, seconds: int, *reports: RankReport) -> str | None:
    """Let seconds pass in which these reports arrive; return what was found first."""
    found = None
    for _ in range(seconds):
        for each in reports:
            monitor.ranks[each.rank].update(each)
        found = found or monitor.tick()
    return found


def test_ranks_that_make_progress_are_not_lost() -> None:
    monitor = HeartbeatMonitor(2, TIMEOUT)
    for step in range(5):
        assert live(monitor, TIMEOUT - 5, report(0, step), report(1, step, waits=True)) is None


def test_a_closed_connection_is_a_death() -> None:
    monitor = HeartbeatMonitor(3, TIMEOUT)
    live(monitor, 2, report(0, 7), report(1, 7), report(2, 7))
    monitor.ranks[2].disconnected = True
    found = live(monitor, 1, report(0, 7), report(1, 7)) or ""
    assert found.startswith("rank 2 (node2, pid 102), last at step 7, died; the checkpoints")


def test_silence_is_noticed_after_its_limit() -> None:
    monitor = HeartbeatMonitor(2, TIMEOUT)
    live(monitor, 1, report(0, 7), report(1, 7))
    assert live(monitor, SILENCE_TICKS - 1, report(0, 8)) is None
    assert "rank 1 (node1, pid 101)" in (live(monitor, 2, report(0, 8)) or "")


def test_the_rank_that_is_behind_is_hung() -> None:
    monitor = HeartbeatMonitor(3, TIMEOUT)
    reports = report(0, 9, waits=True), report(1, 8), report(2, 9, waits=True)
    assert live(monitor, TIMEOUT - 1, *reports) is None
    found = live(monitor, 3, *reports) or ""
    assert found.startswith(
        "rank 1 (node1, pid 101), last at step 8, made no progress for 30 s (engine.timeout)"
    )


def test_among_equals_the_rank_that_waits_for_nobody_is_hung() -> None:
    monitor = HeartbeatMonitor(3, TIMEOUT)
    reports = report(0, 9, waits=True), report(1, 9, waits=True), report(2, 9)
    found = live(monitor, TIMEOUT + 2, *reports) or ""
    assert "rank 2" in found
    assert "rank 1" not in found


def test_work_of_all_may_last_while_nobody_waits() -> None:
    assert live(HeartbeatMonitor(2, TIMEOUT), 3 * TIMEOUT, report(0, 1), report(1, 1)) is None


def test_a_rank_that_is_done_may_be_silent() -> None:
    monitor = HeartbeatMonitor(2, TIMEOUT)
    live(monitor, 1, report(1, 9, exit_reason=""))
    monitor.ranks[1].disconnected = True
    assert live(monitor, 2 * SILENCE_TICKS, report(0, 9)) is None
    assert monitor.all_exited(but=0)


def test_an_error_is_passed_on_when_others_had_time_to_have_it_too() -> None:
    monitor = HeartbeatMonitor(2, TIMEOUT)
    left = report(1, 9, exit_reason="the disk is full")
    assert live(monitor, 3, report(0, 9), left) is None
    found = live(monitor, 2, report(0, 9)) or ""
    assert found.startswith("rank 1 (node1, pid 101) exited at step 9: the disk is full;")


def test_many_lost_ranks_are_counted() -> None:
    monitor = HeartbeatMonitor(9, TIMEOUT)
    found = live(monitor, SILENCE_TICKS + 2, *[report(rank, 3) for rank in range(2)]) or ""
    assert "rank 5" in found
    assert "and 3 more gave no sign of life" in found


def test_where_a_rank_is_is_in_the_sentence() -> None:
    monitor = HeartbeatMonitor(1, TIMEOUT)
    monitor.ranks[0].update(replace(report(0, 3), where="data/loader.py:7"))
    monitor.ranks[0].disconnected = True
    assert "last at step 3 (data/loader.py:7), died" in (monitor.tick() or "")


@contextmanager
def connected(size: int) -> Iterator[tuple[HeartbeatServer, list[HeartbeatClient]]]:
    server = HeartbeatServer(size, 60.0)
    clients = [
        HeartbeatClient(rank, "127.0.0.1", server.port, server.secret, 5.0)
        for rank in range(1, size)
    ]
    yield server, clients
    for client in clients:
        client.close()
    server.close()


def wait_for(server: HeartbeatServer, rank: int, stage: str) -> None:
    end = time.monotonic() + 20
    while server.monitor.ranks[rank].report.stage != stage:
        assert time.monotonic() < end, server.monitor.ranks[rank]
        time.sleep(0.02)


def test_rank_0_hears_the_stages_of_the_others() -> None:
    with connected(3) as (server, clients):
        for client in clients:
            client.set_stage("step 4, saving")
            client.set_stage("step 5, phase generator")
        for rank in (1, 2):
            wait_for(server, rank, "step 5, phase generator")
            assert server.monitor.ranks[rank].report.stages == 2


def test_strangers_are_not_believed() -> None:
    with connected(2) as (server, clients):
        lie = {"secret": server.secret + 1, "rank": 1, "stage": "a lie", "exit_reason": "a lie"}
        for arguments in (b"GET / HTTP/1.1\r\n\r\n", b"7\n", json.dumps(lie).encode() + b"\n"):
            with socket.create_connection(("127.0.0.1", server.port), 5) as stranger:
                stranger.settimeout(20)
                stranger.sendall(arguments)
                assert stranger.recv(1) == b""  # disconnected
        clients[0].set_stage("the truth")
        wait_for(server, 1, "the truth")
        assert not server.monitor.ranks[1].exits


EXIT = """
import sys, time
from t2i_hpc.training.heartbeat import HeartbeatClient
HeartbeatClient(1, "127.0.0.1", int(sys.argv[1]), int(sys.argv[2]), 5.0)
time.sleep(60)
"""


@pytest.mark.parametrize("error", [None, ValueError("no such color")])
def test_a_rank_left_behind_follows_an_error_but_not_a_good_end(
    error: Exception | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    # On a busy machine the other process starts slowly, and silence would end this one.
    monkeypatch.setattr(heartbeat_monitor, "SILENCE_TICKS", 60)
    server = HeartbeatServer(2, 60.0)
    arguments = [sys.executable, "-c", EXIT, str(server.port), str(server.secret)]
    with subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True) as other:
        end = time.monotonic() + 60
        while not server.monitor.ranks[1].report.pid:
            assert time.monotonic() < end
            time.sleep(0.02)
        server.close(error)
        if error is None:
            with pytest.raises(subprocess.TimeoutExpired):
                other.wait(2)
            other.kill()
        else:
            assert other.wait(20) == LOST_RANK


@pytest.mark.parametrize(
    ("error", "broken"),
    [
        (RuntimeError("[third_party/gloo/pair.cc:534] Connection closed by peer"), True),
        (dist.DistBackendError("NCCL communicator was aborted"), True),
        (RuntimeError("shapes cannot be multiplied"), False),
        (NotImplementedError("gloo"), False),
        (ValueError("Broken pipe"), False),
    ],
)
def test_errors_of_collectives_are_known(error: Exception, broken: bool) -> None:
    assert is_broken_collective(error) is broken
