"""A hang on the device: seen by marks in its queue, named by the rank whose device is behind."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from t2i_hpc.training.heartbeat import HeartbeatServer
from t2i_hpc.training.heartbeat_device import (
    DeviceClock,
    DeviceProgress,
    device_clock,
    let_heartbeat_be_first,
)
from t2i_hpc.training.heartbeat_monitor import HeartbeatMonitor, RankReport

TIMEOUT = 30
PHASE = "step 9, phase generator"


@dataclass
class StandIn:
    """A device that has come past the first `passed` marks."""

    passed: int = 0
    recorded: int = 0
    broken: bool = False

    def record(self) -> StandInEvent:
        self.recorded += 1
        return StandInEvent(self, self.recorded)


@dataclass
class StandInEvent:
    device: StandIn
    number: int

    def query(self) -> bool:
        if self.device.broken:
            raise RuntimeError("CUDA error: unspecified launch failure")
        return self.number <= self.device.passed


def report(rank: int, queued: int, done: int, *, waits: bool = False) -> RankReport:
    """All hosts are in one line of the project, as in `.tolist()`, and none in a collective."""
    place = "training/loop.py:50"
    host = RankReport(rank, f"node{rank}", 100 + rank, 77, PHASE, place, waits)
    return replace(host, queued=queued, done=done, device_stage=f"mark {done}")


def found_after(seconds: int, *reports: RankReport) -> tuple[str, HeartbeatMonitor]:
    monitor = HeartbeatMonitor(len(reports), TIMEOUT)
    found = None
    for _ in range(seconds):
        for each in reports:
            monitor.ranks[each.rank].update(each)
        found = found or monitor.tick()
    return found or "", monitor


def test_the_rank_whose_device_is_behind_is_named() -> None:
    reports = report(0, 9, 8), report(1, 9, 8), report(2, 9, 7), report(3, 9, 8)
    found, monitor = found_after(TIMEOUT + 1, *reports)
    assert found.startswith(
        f"rank 2 (node2, pid 102), last at {PHASE} (training/loop.py:50), its device at mark 7, "
        "made no progress for 30 s (engine.timeout); the checkpoints are intact"
    )
    assert monitor.lost_hosts == ("node2",)


def test_where_hosts_are_says_nothing_while_devices_work() -> None:
    """A full launch queue stops one host in an earlier stage than the others."""
    slow = replace(report(0, 8, 7), stages=76)
    found, monitor = found_after(TIMEOUT + 1, slow, report(1, 9, 7), report(2, 9, 6))
    assert "rank 2" in found
    assert monitor.lost_hosts == ("node2",)


def test_a_host_that_gives_its_device_nothing_is_named() -> None:
    """It reads data that never comes; the other devices wait for it in a collective."""
    reading = replace(report(1, 7, 7), stages=75)
    found, monitor = found_after(TIMEOUT + 1, report(0, 9, 7), reading, report(2, 9, 7))
    assert monitor.lost_hosts == ("node1",), found


def test_where_all_devices_are_equal_nobody_is_accused() -> None:
    found, monitor = found_after(TIMEOUT + 1, report(0, 9, 7), report(1, 9, 7))
    assert found.startswith(
        "the devices of all 2 ranks made no progress for 30 s (engine.timeout), all at mark 7: one "
        "collective does not end, and no rank stands out"
    )
    assert monitor.lost_hosts == ()


def test_a_device_that_goes_on_is_progress() -> None:
    monitor = HeartbeatMonitor(2, TIMEOUT)
    for done in range(4):
        for _ in range(TIMEOUT - 1):
            monitor.ranks[0].update(report(0, 9, done))
            monitor.ranks[1].update(report(1, 9, done))
            assert monitor.tick() is None


def test_devices_that_are_done_leave_it_to_the_hosts() -> None:
    reports = report(0, 9, 9), report(1, 9, 9, waits=True)
    assert "rank 0" in found_after(TIMEOUT + 1, *reports)[0]
    assert found_after(3 * TIMEOUT, report(0, 9, 9), report(1, 9, 9))[0] == ""


def test_a_clock_follows_its_device_without_waiting() -> None:
    device = StandIn()
    clock = DeviceClock(device.record)
    assert clock.read() == DeviceProgress(0, 0, "")
    for stage in ("a", "b", "c"):
        clock.mark(stage)
    assert clock.read() == DeviceProgress(3, 0, "")
    device.passed = 2
    assert clock.read() == DeviceProgress(3, 2, "b")
    device.broken = True
    assert clock.read() == DeviceProgress(3, 2, "b")
    assert device_clock(torch.device("cpu")) is None


def test_stages_leave_marks_that_reports_carry() -> None:
    device = StandIn()
    server = HeartbeatServer(1, 60.0, DeviceClock(device.record))
    server.set_stage(PHASE)
    server.mark_device(f"{PHASE}, backward")
    device.passed = 1
    own = server._report()
    assert (own.queued, own.done, own.device_stage) == (2, 1, PHASE)
    assert own.device_works
    server.close()


def test_nccl_leaves_the_first_word_to_the_heartbeat() -> None:
    environment = {"TORCH_NCCL_ASYNC_ERROR_HANDLING": "1"}
    let_heartbeat_be_first(environment, timeout=600)
    assert environment == {
        "TORCH_NCCL_ASYNC_ERROR_HANDLING": "1",  # a person's
        "TORCH_NCCL_HEARTBEAT_TIMEOUT_SEC": "1800",  # 480 by default
        "TORCH_NCCL_DUMP_ON_TIMEOUT": "1",
    }
