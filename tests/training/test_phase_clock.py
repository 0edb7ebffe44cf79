"""Milliseconds by part of a step, read when the device has passed them and never waited for."""

from __future__ import annotations

from collections.abc import Iterator
from unittest.mock import patch

import pytest
import torch

from t2i_hpc.config.engine import EngineConfig
from t2i_hpc.training.phase_clock import PhaseClock
from t2i_hpc.training.step import build_strategy, train_step
from t2i_hpc.training.world import World
from tests.support.toys import Toy, toy_batch

CUDA = torch.device("cuda")


class Gpu:
    """A device on which every part takes a millisecond more than the one before."""

    def __init__(self) -> None:
        self.passed = 0
        self.recorded = 0


class Event:
    """Stands in for torch.cuda.Event on `gpu`; whoever waits for it fails."""

    gpu: Gpu

    def __init__(self, enable_timing: bool = False) -> None:
        assert enable_timing
        self.number = 0

    def record(self) -> None:
        self.gpu.recorded += 1
        self.number = self.gpu.recorded

    def query(self) -> bool:
        return self.number <= self.gpu.passed

    def elapsed_time(self, end: Event) -> float:
        assert end.query(), "torch raises here"
        return float(sum(range(self.number, end.number)))

    def synchronize(self) -> None:
        raise AssertionError("the host waits for the device")


@pytest.fixture
def gpu() -> Iterator[Gpu]:
    Event.gpu = Gpu()
    with patch.object(torch.cuda, "Event", Event):
        yield Event.gpu


def take_step(clock: PhaseClock) -> None:
    for part in ("shared", "generator", "ema"):
        clock.start(part)
    clock.end_step()


def test_a_step_is_read_once_the_device_has_passed_it(gpu: Gpu) -> None:
    clock = PhaseClock(CUDA)
    take_step(clock)
    assert clock.read() == {}
    gpu.passed = 3  # all but the step's end
    assert clock.read() == {}
    gpu.passed = 4
    take_step(clock)
    assert clock.read() == {"shared": 1.0, "generator": 2.0, "ema": 3.0}
    take_step(clock)
    gpu.passed = 12
    means = {"shared": (5 + 9) / 2, "generator": (6 + 10) / 2, "ema": (7 + 11) / 2}
    assert clock.read() == means
    assert clock.read() == {}


def test_a_device_that_stands_still_costs_no_memory(gpu: Gpu) -> None:
    clock = PhaseClock(CUDA)
    for _ in range(1000):
        take_step(clock)
    assert len(clock._pending) == 64


def test_a_training_step_has_its_parts() -> None:
    world = World(0, 1, 0, 1, torch.device("cpu"))
    strategy = build_strategy(Toy(), world, EngineConfig(batch_size=4))
    for step in range(2):
        train_step(strategy, *toy_batch(4, 4 * step), 4 * step)
    found = strategy.clock.read()
    assert list(found) == ["shared", "a", "b", "ema"]
    assert all(took >= 0 for took in found.values())
