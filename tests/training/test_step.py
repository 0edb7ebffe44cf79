"""A step of any system: micro-batches, what travels between ranks, compiled networks, layout."""

from __future__ import annotations

from collections import Counter
from functools import partialmethod
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel

from t2i_hpc.common.errors import ConfigurationError
from t2i_hpc.config.engine import EngineConfig
from t2i_hpc.training import compilation
from t2i_hpc.training.ddp import DDPStrategy
from t2i_hpc.training.step import Strategy, train_step
from t2i_hpc.training.world import World
from tests.support.ranks import run_ranks
from tests.support.toys import Toy, toy_batch
from tests.support.training import tiny_batch, tiny_system

AOT_EAGER = "aot_eager"
CPU = World(0, 1, 0, 1, torch.device("cpu"))


def weights(strategy: Strategy) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in strategy.system.modules.state_dict().items()}


def toy_steps(world: World, accumulate: int = 1) -> tuple[dict[str, Tensor], dict[str, int]]:
    """Train the toy on batches of four; return its weights and what DDP sent."""
    strategy = DDPStrategy(Toy(), world, EngineConfig(batch_size=4, accumulate=accumulate))
    sent: Counter[str] = Counter()

    def counted(name: str, bucket: Any) -> Any:
        sent[f"{name} calls"] += 1
        sent[f"{name} numbers"] += bucket.buffer().numel()
        return allreduce_hook(dist.group.WORLD, bucket)  # type: ignore[arg-type]

    counted.__annotations__.clear()  # DDP compares them as types, and here they are strings
    share = 4 // world.size
    for step in range(3):
        batch, noise = toy_batch(share, step * 4 + world.rank * share)
        for updates, module in strategy.losses.items():
            if world.size > 1 and step == 1:  # buckets are laid out in the first step
                assert isinstance(module, DistributedDataParallel)
                module.register_comm_hook(updates[0], counted)
        train_step(strategy, batch, noise, step * 4)
    return weights(strategy), dict(sent)


def toy_ranks(world: World) -> list[tuple[dict[str, Tensor], dict[str, int]]]:
    # Rank 1 never reaches the parameter called rare, rank 0 in its first micro-batch only.
    return [toy_steps(world), toy_steps(world, 2)]


def assert_near(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    for name, value in ours.items():
        assert torch.allclose(theirs[name], value, rtol=1e-6, atol=1e-6), name


def test_micro_batches_are_the_batch_where_nothing_spans_it() -> None:
    assert_near(toy_steps(CPU)[0], toy_steps(CPU, 2)[0])


def test_ranks_that_miss_a_parameter_stay_replicas_and_send_once(tmp_path: Path) -> None:
    whole, _ = toy_steps(CPU)
    run_ranks(toy_ranks, 2, tmp_path)
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    numbers = sum(p.numel() for p in Toy().trainable["a"].parameters())
    for rank in ranks:
        for number, (got, sent) in enumerate(rank):
            assert_near(whole, got)
            assert all(torch.equal(got[name], ranks[0][number][0][name]) for name in got)
            # Two steps of one phase each, of one or two micro-batches.
            assert sent["a calls"] == sent["b calls"] == 2
            assert sent["a numbers"] == 2 * numbers


def test_micro_batches_that_do_not_divide_are_refused_at_once() -> None:
    config = EngineConfig(batch_size=8, accumulate=3)
    with pytest.raises(ConfigurationError, match="accumulate=3 does not divide the 8 images"):
        DDPStrategy(Toy(), CPU, config)
    world = World(0, 4, 0, 4, torch.device("cpu"))
    with pytest.raises(ConfigurationError, match="accumulate=4 does not divide the 2 images"):
        DDPStrategy(Toy(), world, EngineConfig(batch_size=8, accumulate=4))


def test_micro_batches_of_ssa_gan_report_mean_losses() -> None:
    """Norms and wrong captions span a micro-batch, so the numbers are others, not the terms."""
    noise = torch.randn(4, 100, generator=torch.Generator().manual_seed(1))
    plain = train_step(
        DDPStrategy(tiny_system(), CPU, EngineConfig(batch_size=4)), tiny_batch(), noise
    )
    config = EngineConfig(batch_size=4, accumulate=2)
    cut = train_step(DDPStrategy(tiny_system(), CPU, config), tiny_batch(), noise)
    assert plain.keys() == cut.keys()
    real = "discriminator/real"  # a mean over samples without batch statistics
    assert float(cut[real]) == pytest.approx(float(plain[real]), rel=1e-5)


def test_the_layout_of_images_in_memory_is_rounding() -> None:
    values = []
    for channels_last in (False, True):
        config = EngineConfig(batch_size=4, channels_last=channels_last)
        system = tiny_system("frozen", 0.125)
        strategy = DDPStrategy(system, CPU, config)
        weight = system.generator.to_rgb.weight
        assert weight.is_contiguous(memory_format=torch.channels_last) == channels_last
        values.append(ssa_steps(strategy, 2))
    assert_losses_near(values[0], values[1], 1e-4)


def ssa_steps(strategy: Strategy, steps: int) -> list[dict[str, float]]:
    found = []
    for step in range(steps):
        noise = torch.randn(4, 100, generator=torch.Generator().manual_seed(step))
        values = train_step(strategy, tiny_batch(start=4 * step), noise, 4 * step)
        found.append({name: float(value) for name, value in values.items()})
    return found


def assert_losses_near(
    ours: list[dict[str, float]], theirs: list[dict[str, float]], allowed: float
) -> None:
    for one, two in zip(ours, theirs, strict=True):
        for name, value in one.items():
            assert abs(two[name] - value) <= allowed * max(1.0, abs(value)), name


def test_compiled_networks_train_alike_and_keep_their_names(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As far as tracing and differentiating go, which take seconds instead of minutes."""
    monkeypatch.setattr(nn.Module, "compile", partialmethod(nn.Module.compile, backend=AOT_EAGER))
    monkeypatch.setattr(compilation, "_BACKEND", AOT_EAGER)
    check_compiled(["generator", "image_encoder"])


@pytest.mark.slow
def test_the_generator_compiled_to_machine_code_trains_alike() -> None:
    check_compiled(["generator"])


def check_compiled(names: list[str]) -> None:
    plain = DDPStrategy(tiny_system("frozen", 0.125), CPU, EngineConfig(batch_size=4))
    config = EngineConfig(batch_size=4, compile=names)
    compiled = DDPStrategy(tiny_system("frozen", 0.125), CPU, config)
    torch._dynamo.reset()
    counters.clear()
    ours, theirs = ssa_steps(plain, 3), ssa_steps(compiled, 3)
    assert counters["stats"]["unique_graphs"] >= len(names)
    assert_losses_near(ours, theirs, 1e-3)  # DAMSM sharpens rounding; the other losses: 1e-4
    assert_losses_near(without_damsm(ours), without_damsm(theirs), 1e-4)
    assert weights(plain).keys() == weights(compiled).keys()
    assert plain.read_moments().keys() == compiled.read_moments().keys()


def without_damsm(rows: list[dict[str, float]]) -> list[dict[str, float]]:
    return [{name: v for name, v in row.items() if "damsm" not in name} for row in rows]
