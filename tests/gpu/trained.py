"""Short trainings of tiny systems on a device."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from t2i_hpc.common.seeds import noise, seed_step
from t2i_hpc.config.engine import EngineConfig
from t2i_hpc.training.step import Strategy, build_strategy, train_step
from t2i_hpc.training.world import World
from tests.support.training import tiny_batch
from tests.systems.tiny import built

BATCH = 4


def strategy_of(name: str, device: torch.device, *overrides: str, **engine: Any) -> Strategy:
    """Build a tiny system with the same weights on every device, and its strategy."""
    torch.manual_seed(0)
    system = built(name, *overrides)
    system.modules.to(device)
    config = EngineConfig(batch_size=BATCH, **engine)
    return build_strategy(system, World(0, 1, 0, 1, device), config)


def inputs(strategy: Strategy, step: int) -> tuple[Any, Tensor]:
    """Return the batch and the noise of a step, where the loop has them."""
    seed_step(1, step * BATCH)
    batch = tiny_batch(BATCH, step * BATCH).to(strategy.world.device)
    rows = noise(1, "noise", batch.positions.tolist(), strategy.system.noise_width)
    return batch, rows.to(strategy.world.device)


def train(strategy: Strategy, steps: int, first: int = 0) -> list[dict[str, float]]:
    """Train; return the losses of each step, all of which were found finite."""
    found = []
    for step in range(first, first + steps):
        values = train_step(strategy, *inputs(strategy, step), step * BATCH)
        found.append({name: float(value) for name, value in values.items()})
    assert strategy.nonfinite.pop_first(float("inf")) is None
    return found


def largest_difference(one: list[dict[str, float]], two: list[dict[str, float]]) -> float:
    """Return the largest difference of losses, relative to max(1, loss)."""
    assert [losses.keys() for losses in one] == [losses.keys() for losses in two]
    return max(
        abs(ours[name] - theirs[name]) / max(1.0, abs(ours[name]))
        for ours, theirs in zip(one, two, strict=True)
        for name in ours
    )
