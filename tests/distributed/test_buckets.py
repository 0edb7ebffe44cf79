"""DDP's buckets: sent while a backward still computes, and laid out alike in every session."""

from __future__ import annotations

from functools import partialmethod
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel

from t2i_hpc.common.collectives import mean_over_ranks
from t2i_hpc.common.seeds import seed_step
from t2i_hpc.config.engine import EngineConfig
from t2i_hpc.systems.one_stage_gan import OneStageGAN
from t2i_hpc.training import ddp
from t2i_hpc.training.ddp import DDPStrategy
from t2i_hpc.training.step import train_step
from t2i_hpc.training.world import World
from tests.support.ranks import run_ranks
from tests.support.training import tiny_batch, tiny_config, tiny_system

RANKS, BATCH, MEGABYTES = 3, 6, 0.02  # sums of two ranks have no order; the networks are tiny
State = dict[str, Tensor]


class SmallBuckets(DistributedDataParallel):
    __init__ = partialmethod(DistributedDataParallel.__init__, bucket_cap_mb=MEGABYTES)


def train(
    world: World, system: OneStageGAN, steps: range, moments: State | None = None, **options: Any
) -> DDPStrategy:
    """Train in a session of its own."""
    strategy = DDPStrategy(system, world, EngineConfig(batch_size=BATCH, **options))
    if moments is not None:
        strategy.write_moments(moments)
    for step in steps:
        one_step(strategy, step)
    return strategy


def one_step(strategy: DDPStrategy, step: int) -> State:
    seed_step(1, step * BATCH)
    share = BATCH // RANKS
    first = step * BATCH + strategy.world.rank * share
    random = torch.Generator().manual_seed(first)
    noise = torch.randn(share, strategy.system.noise_width, generator=random)
    return train_step(strategy, tiny_batch(share, first), noise, step * BATCH)


def state_of(strategy: DDPStrategy) -> State:
    weights = strategy.system.modules.state_dict()
    return {k: v.clone() for k, v in (weights | strategy.read_moments()).items()}


def resumed(world: World) -> tuple[State, State]:
    """Return how a training of three steps ends, and one that is resumed after the first.

    The second step has no penalty: gradients come in another order than in the first.
    """
    whole = train(world, lazy_system(), range(3))
    before = train(world, lazy_system(), range(1))
    system = lazy_system()
    system.modules.load_state_dict(before.system.modules.state_dict())
    after = train(world, system, range(1, 3), before.read_moments())
    return state_of(whole), state_of(after)


def lazy_system() -> OneStageGAN:
    """Build one with the penalty in every second step of its discriminator."""
    config = tiny_config()
    config.discriminator_schedule, config.penalty_every = "merged", 2
    system = OneStageGAN(config, 20)
    system.modules.load_state_dict(tiny_system().modules.state_dict())
    return system


def launches(world: World) -> dict[str, list[tuple[int, int]]]:
    """Return of each phase when its buckets were sent: gradients that were there, and of all."""
    strategy = train(world, tiny_system(), range(1))
    ready: list[str] = []
    sent: dict[str, list[int]] = {}

    def counted(state: Any, bucket: Any) -> Any:
        sent[phase_of(strategy)].append(len(ready))
        return allreduce_hook(dist.group.WORLD, bucket)  # type: ignore[arg-type]

    counted.__annotations__.clear()  # DDP compares them as types, and here they are strings
    for module in strategy.losses.values():
        assert isinstance(module, SmallBuckets)
        module.register_comm_hook(None, counted)
        for name, parameter in module.named_parameters():
            parameter.register_hook(lambda gradient, name=name: ready.append(name))
    found = {}
    original = strategy.backward

    def backward(phase: Any, loss: Tensor) -> None:
        ready.clear()
        sent[phase.name] = []
        original(phase, loss)
        found[phase.name] = [(there, len(ready)) for there in sent[phase.name]]

    vars(strategy)["backward"] = backward
    one_step(strategy, 1)
    return found


def compressed(world: World) -> tuple[list[State], State]:
    """Return losses of a step after two with gradients as they are and in bfloat16; weights."""
    found = []
    for kind in ("none", "bf16"):
        strategy = train(world, tiny_system(), range(2), gradient_compression=kind)
        values = one_step(strategy, 2)
        found.append({name: mean_over_ranks(value) for name, value in values.items()})
    return found, state_of(strategy)


def phase_of(strategy: DDPStrategy) -> str:
    return strategy.world.stage.name.rpartition(" ")[2]


def everything(world: World) -> tuple[Any, Any, Any]:
    vars(ddp)["DistributedDataParallel"] = SmallBuckets
    return resumed(world), launches(world), compressed(world)


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Any, Any, Any]]:
    folder = tmp_path_factory.mktemp("buckets")
    run_ranks(everything, RANKS, folder)
    return [torch.load(folder / f"{rank}.pt") for rank in range(RANKS)]


def test_a_resumed_run_takes_sums_in_the_same_order(ranks: list[tuple[Any, Any, Any]]) -> None:
    for (whole, after), *_ in ranks:
        assert whole.keys() == after.keys()
        assert all(torch.equal(value, after[name]) for name, value in whole.items())


def test_the_first_bucket_of_the_generator_does_not_wait_for_the_last_gradient(
    ranks: list[tuple[Any, Any, Any]],
) -> None:
    for _, found, _ in ranks:
        assert len(found["generator"]) > 3
        there, of_all = found["generator"][0]
        assert there <= 0.6 * of_all


def test_gradients_in_bfloat16_are_nearly_the_same_training(
    ranks: list[tuple[Any, Any, Any]],
) -> None:
    _, _, ((exact, rounded), weights) = ranks[0]
    assert exact.keys() == rounded.keys()
    differences = [abs(float(exact[n] - rounded[n])) / max(1, abs(float(exact[n]))) for n in exact]
    assert 0 < max(differences) < 0.01
    for _, _, (_, others) in ranks[1:]:
        assert all(torch.equal(value, others[name]) for name, value in weights.items())
