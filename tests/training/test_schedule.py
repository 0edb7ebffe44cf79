"""Learning rates follow the images seen, whatever the engine and wherever a run resumes."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from t2i_hpc.config.engine import EngineConfig, ScheduleConfig
from t2i_hpc.systems.base import OptimizerSettings
from t2i_hpc.training.ddp import DDPStrategy
from t2i_hpc.training.optimizers import learning_rate, restarts, schedule_factor
from t2i_hpc.training.step import train_step
from t2i_hpc.training.world import World
from tests.support.toys import Toy, toy_batch

CPU = World(0, 1, 0, 1, torch.device("cpu"))
SETTINGS = OptimizerSettings(0.1, (0.5, 0.9))


def test_the_warm_up_grows_evenly_from_the_first_image_on() -> None:
    schedule = ScheduleConfig(warmup_images=9)
    assert [schedule_factor(schedule, images) for images in (0, 4, 8)] == pytest.approx(
        [0.1, 0.5, 0.9]
    )
    assert schedule_factor(schedule, 9) == schedule_factor(schedule, 10**9) == 1.0


@pytest.mark.parametrize(
    ("decay", "half"), [("none", 1.0), ("linear", 0.6), ("cosine", 0.6)], ids=str
)
def test_the_decay_begins_after_the_warm_up_and_ends_at_its_floor(decay: str, half: float) -> None:
    schedule = ScheduleConfig(warmup_images=100, decay=decay, decay_images=1000, floor=0.2)
    assert schedule_factor(schedule, 100) == 1.0
    assert schedule_factor(schedule, 600) == pytest.approx(half)
    end = 1.0 if decay == "none" else 0.2
    assert schedule_factor(schedule, 1100) == schedule_factor(schedule, 10**9) == pytest.approx(end)


def test_cosine_falls_slowly_at_first() -> None:
    schedule = ScheduleConfig(decay="cosine", decay_images=1000)
    assert schedule_factor(schedule, 250) == pytest.approx((1 + math.cos(math.pi / 4)) / 2)


def test_a_parts_own_rate_is_multiplied() -> None:
    schedule = ScheduleConfig(decay="linear", decay_images=100)
    own = replace(SETTINGS, learning_rate_at=lambda images: 1.0 / (1 + images))
    assert learning_rate(SETTINGS, schedule, 50) == pytest.approx(0.05)
    assert learning_rate(own, schedule, 50) == pytest.approx(0.5 / 51)


def test_moments_are_forgotten_at_the_first_step_of_each_period() -> None:
    every = replace(SETTINGS, restart_every=10)
    steps = [images for images in range(0, 60, 4) if restarts(every, images, 4)]
    assert steps == [0, 12, 20, 32, 40, 52]
    assert not any(restarts(SETTINGS, images, 4) for images in range(0, 60, 4))


def rates(strategy: DDPStrategy, first: int, last: int) -> list[float]:
    found = []
    for step in range(first, last):
        train_step(strategy, *toy_batch(4, 4 * step), 4 * step)
        found.append(strategy.optimizers["a"].param_groups[0]["lr"])
    return found


def test_a_resumed_run_has_the_rates_and_moments_of_the_uninterrupted_one() -> None:
    schedule = ScheduleConfig(warmup_images=8, decay="cosine", decay_images=16)
    config = EngineConfig(batch_size=4, schedule=schedule)

    def engine() -> DDPStrategy:
        system = Toy()
        part = replace(system.optimizers["a"], restart_every=12)
        system.optimizers = {"a": part, "b": system.optimizers["b"]}
        return DDPStrategy(system, CPU, config)

    whole, before, after = engine(), engine(), engine()
    expected = rates(whole, 0, 6)
    assert len(set(expected)) == 6
    assert rates(before, 0, 3) == expected[:3]
    after.system.modules.load_state_dict(before.system.modules.state_dict())
    after.write_moments({name: value.clone() for name, value in before.read_moments().items()})
    assert rates(after, 3, 6) == expected[3:]
    ours, theirs = whole.read_moments(), after.read_moments()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert int(ours["a/common.weight/step"]) == 3
    assert int(ours["b/common.weight/step"]) == 6
