"""The exponential moving average of the generator."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from t2i_hpc.systems.base import EMA
from t2i_hpc.systems.one_stage_gan import OneStageGAN
from t2i_hpc.training.ddp import DDPStrategy
from t2i_hpc.training.step import train_step
from t2i_hpc.training.world import World
from tests.support.training import only_run, tiny_batch, tiny_config, tiny_system, train_tiny
from tests.systems.tiny import built

CPU = World(0, 1, 0, 1, torch.device("cpu"))


def with_ema() -> OneStageGAN:
    torch.manual_seed(0)
    config = tiny_config()
    config.ema_images = 40.0
    return OneStageGAN(config, 20)


def test_a_weight_counts_half_after_the_half_life() -> None:
    source, target = nn.Linear(1, 1), nn.Linear(1, 1)
    nn.init.zeros_(target.weight)
    nn.init.ones_(source.weight)
    ema = EMA(source, target, half_life=40.0)
    for step in range(10):
        ema.update(images_seen=10_000 + 4 * step, batch_size=4)
    assert float(target.weight) == pytest.approx(0.5)


def test_early_weights_are_soon_forgotten() -> None:
    source, target = nn.Linear(1, 1), nn.Linear(1, 1)
    nn.init.zeros_(target.weight)
    nn.init.ones_(source.weight)
    EMA(source, target, half_life=1e9).update(images_seen=4, batch_size=4)
    assert float(target.weight) == pytest.approx(0.75)


def test_without_the_ramp_the_decay_is_the_same_from_the_first_step() -> None:
    """AttnGAN's released code: average × 0.999 + weights × 0.001, batches of 20."""
    source, target = nn.Linear(1, 1), nn.Linear(1, 1)
    nn.init.zeros_(target.weight)
    nn.init.ones_(source.weight)
    ema = EMA(source, target, half_life=13_856, ramp=False)
    ema.update(images_seen=20, batch_size=20)
    assert float(target.weight) == pytest.approx(0.001, rel=1e-3)
    system = built("attn_gan", "system.ema_ramp=false")
    assert not system.emas[0].ramp


def test_statistics_are_those_of_the_trained_network() -> None:
    source, target = nn.BatchNorm1d(1), nn.BatchNorm1d(1)
    source(torch.tensor([[1.0], [3.0]]))
    EMA(source, target, half_life=1e9).update(images_seen=10_000, batch_size=2)
    kept = target.state_dict()
    assert float(kept["running_mean"]) == pytest.approx(0.2)
    assert all(torch.equal(kept[name], value) for name, value in source.named_buffers())


def test_the_ema_generates_and_is_not_trained() -> None:
    system = with_ema()
    strategy = DDPStrategy(system, CPU)
    noise = torch.randn(4, 100, generator=torch.Generator().manual_seed(1))
    for step in range(3):
        train_step(strategy, tiny_batch(), noise, 1000 + 4 * step)
    (ema,) = system.emas
    assert all(p.grad is None for p in ema.target.parameters())
    live, kept = ema.source.state_dict(), ema.target.state_dict()
    assert any(not torch.equal(live[name], kept[name]) for name in live)
    batch = tiny_batch()
    generated = system.generate(batch.tokens, batch.lengths, noise).images[-1]
    ema.target.load_state_dict(live)
    assert not torch.equal(
        system.generate(batch.tokens, batch.lengths, noise).images[-1], generated
    )


def test_it_changes_nothing_of_the_training() -> None:
    noise = torch.randn(4, 100, generator=torch.Generator().manual_seed(1))
    weights = []
    for config in (tiny_config(), with_ema().config):
        torch.manual_seed(0)
        system = OneStageGAN(config, 20)
        train_step(DDPStrategy(system, CPU), tiny_batch(), noise)
        weights.append(system.generator.state_dict())
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert not tiny_system().emas


def test_it_is_saved_and_resumed_bit_identically(shards: Path, tmp_path: Path) -> None:
    overrides = ("system.ema_images=16", "engine.device=cpu")
    train_tiny(shards, tmp_path / "a", "engine.images=24", *overrides)
    train_tiny(shards, tmp_path / "b", "engine.images=12", *overrides)
    train_tiny(shards, tmp_path / "b", "engine.images=24", *overrides)
    name = "checkpoints/0000000024/weights.safetensors"
    first, second = (load_file(only_run(tmp_path / run) / name) for run in ("a", "b"))
    assert any(key.startswith("generator_ema.") for key in first)
    assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize("name", ["df_gan", "attn_gan", "dm_gan"])
def test_the_ema_of_the_other_systems_generates(name: str) -> None:
    torch.manual_seed(0)
    system = built(name)
    batch, noise = tiny_batch(), torch.randn(4, system.noise_width)
    (ema,) = system.emas
    generated = system.generate(batch.tokens, batch.lengths, noise).images[-1]
    with torch.no_grad():
        for parameter in ema.source.parameters():
            parameter.add_(0.1)
    assert torch.equal(system.generate(batch.tokens, batch.lengths, noise).images[-1], generated)
    ema.target.load_state_dict(ema.source.state_dict())
    assert not torch.equal(
        system.generate(batch.tokens, batch.lengths, noise).images[-1], generated
    )
