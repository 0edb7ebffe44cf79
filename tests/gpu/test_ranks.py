"""Two ranks that share a GPU train as one does. Over gloo: NCCL takes one rank a GPU."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from t2i_hpc.common.collectives import mean_over_ranks
from t2i_hpc.common.seeds import noise, seed_step
from t2i_hpc.config.engine import EngineConfig
from t2i_hpc.training.step import build_strategy, train_step
from t2i_hpc.training.world import World
from tests.support.ranks import run_ranks
from tests.support.training import tiny_batch, tiny_system

BATCH, STEPS = 4, 2


def losses_on(world: World, kind: str) -> list[list[float]]:
    """Train on this rank's share; return each step's losses, averaged over the ranks."""
    device = torch.device(kind)
    world = replace(world, device=device)
    system = tiny_system()
    system.modules.to(device)
    strategy = build_strategy(system, world, EngineConfig(batch_size=BATCH, precision="fp32"))
    share, found = BATCH // world.size, []
    for step in range(STEPS):
        first = step * BATCH + world.rank * share
        seed_step(1, step * BATCH)
        rows = noise(1, "noise", range(first, first + share), 100).to(device)
        values = train_step(strategy, tiny_batch(share, first).to(device), rows, step * BATCH)
        stacked = torch.stack([value.double() for value in values.values()])
        found.append(mean_over_ranks(stacked).tolist())
    return found


@pytest.mark.timeout(120)
def test_two_ranks_train_as_one_does(device: torch.device, tmp_path: Path) -> None:
    run_ranks(losses_on, 2, tmp_path, device.type)
    one = losses_on(World(0, 1, 0, 1, device), device.type)
    for rank in range(2):
        two = torch.tensor(torch.load(tmp_path / f"{rank}.pt"))
        torch.testing.assert_close(two, torch.tensor(one), rtol=1e-3, atol=1e-3)
