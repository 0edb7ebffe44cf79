"""What a step keeps for its backward passes: micro-batches and recomputation, the same bits."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks.live_memory import Alive
from t2i_hpc.common.errors import ConfigurationError
from t2i_hpc.config.engine import EngineConfig
from t2i_hpc.models.recomputation import remade
from t2i_hpc.models.ssa_generator import SSAGenerator
from t2i_hpc.systems.base import System
from t2i_hpc.training.ddp import DDPStrategy
from t2i_hpc.training.step import train_step
from t2i_hpc.training.world import World
from tests.support.training import tiny_batch, tiny_system
from tests.systems.tiny import built

CPU = World(0, 1, 0, 1, torch.device("cpu"))
MERGED = ("system.discriminator_schedule=merged",)
REDRAWN = ("bert", "df_gan", "attn_dcgan")


def kept_by_a_forward(generator: nn.Module, *inputs: Tensor) -> int:
    """Return the bytes of a graph, the image included."""
    alive = Alive()
    with alive:
        image = generator(*inputs).images[-1]
        assert image.requires_grad
        return alive.bytes


def test_the_published_generator_keeps_half_of_the_released_one() -> None:
    """452 MiB an image, where each operation keeps what torch's does."""
    with torch.device("meta"):
        generator = SSAGenerator(256, width=64)
        kept = kept_by_a_forward(generator, torch.empty(2, 100), torch.empty(2, 256))
    assert kept <= 226 * 2 * 2**20


@dataclass
class Kept:
    """Bytes that graphs keep, weights aside: now and at most."""

    now: int = 0
    most: int = 0


class _Held:
    """A saved tensor, for as long as a graph holds it."""

    def __init__(self, value: Tensor) -> None:
        self.value = value


@contextmanager
def counted(system: System) -> Iterator[Kept]:
    """Count what is saved for backward; a storage counts once."""
    kept, holders = Kept(), dict[int, int]()
    weights = {p.untyped_storage().data_ptr() for p in system.modules.parameters()}

    def forget(storage: int, size: int) -> None:
        holders[storage] -= 1
        kept.now -= 0 if holders[storage] else size

    def hold(value: Tensor) -> Tensor | _Held:
        storage, size = value.untyped_storage().data_ptr(), value.untyped_storage().nbytes()
        if storage in weights or not storage:
            return value
        holders[storage] = holders.get(storage, 0) + 1
        kept.now += size if holders[storage] == 1 else 0
        kept.most = max(kept.most, kept.now)
        held = _Held(value)
        weakref.finalize(held, forget, storage, size)
        return held

    def give(held: Tensor | _Held) -> Tensor:
        return held.value if isinstance(held, _Held) else held

    with torch.autograd.graph.saved_tensors_hooks(hold, give):
        yield kept


def most_kept(images: int, **settings: Any) -> int:
    """Return the bytes that a step of the tiny SSA-GAN keeps at most."""
    system = tiny_system()
    strategy = DDPStrategy(system, CPU, EngineConfig(batch_size=images, **settings))
    with counted(system) as kept:
        train_step(strategy, tiny_batch(images), torch.zeros(images, 100))
    return kept.most


def test_eight_micro_batches_keep_a_third() -> None:
    assert most_kept(16, accumulate=8) <= 0.35 * most_kept(16)


def test_recomputation_keeps_less() -> None:
    assert most_kept(4, recompute=["generator"]) <= 0.65 * most_kept(4)


def kept_by_the_discriminator(system: System, **settings: Any) -> int:
    """Return the bytes that its phase keeps at most, those that are there before it aside."""
    strategy = DDPStrategy(system, CPU, EngineConfig(batch_size=4, **settings))
    phase = strategy.phases[0]
    with counted(system) as kept:
        context = strategy.begin(tiny_batch(), torch.zeros(4, system.noise_width))
        before = kept.most = kept.now
        for part in strategy.parts(phase):
            strategy.backward(phase, strategy.forward(phase, part, context)[0])
    return kept.most - before


@pytest.mark.parametrize(("settings", "share"), [((), 0.55), (MERGED, 0.85)], ids=str)
def test_real_and_fake_images_one_after_the_other_keep_less(
    settings: tuple[str, ...], share: float
) -> None:
    """Half without a penalty; with one the graph of its gradient is the larger part."""
    apart = kept_by_the_discriminator(fresh("ssa_gan", *settings))
    together = kept_by_the_discriminator(fresh("ssa_gan", *settings), split_losses=False)
    assert apart <= share * together


def after_a_step(system: Any, **settings: Any) -> dict[str, Tensor]:
    """Return losses, weights, statistics and moments after one step."""
    torch.manual_seed(1)
    strategy = DDPStrategy(system, CPU, EngineConfig(batch_size=4, **settings))
    losses = train_step(strategy, tiny_batch(), torch.randn(4, system.noise_width))
    return {**losses, **system.modules.state_dict(), **strategy.read_moments()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def fresh(name: str, *overrides: str) -> Any:
    torch.manual_seed(0)
    return built(name, *overrides)


@pytest.mark.parametrize("name", REDRAWN)
def test_images_that_are_drawn_again_are_the_same(name: str) -> None:
    """As with every micro-batch's graph kept from the beginning on."""
    whole = fresh(name)
    whole.phases = [replace(phase, redraw=None) for phase in whole.phases]
    expected = after_a_step(whole, accumulate=2)
    assert same(after_a_step(fresh(name), accumulate=2), expected)


@pytest.mark.parametrize("name", ["ssa_gan", "affine", "df_gan", "dm_gan"])
def test_recomputation_gives_the_same_bits(name: str) -> None:
    expected = after_a_step(fresh(name))
    assert same(after_a_step(fresh(name), recompute=["generator"]), expected)


def test_the_image_encoder_is_computed_again_as_well() -> None:
    expected = after_a_step(fresh("attn_gan"))
    assert same(after_a_step(fresh("attn_gan"), recompute=["image_encoder"]), expected)


def test_both_together_give_the_same_bits() -> None:
    expected = after_a_step(fresh("ssa_gan"), accumulate=2)
    both = after_a_step(fresh("ssa_gan"), accumulate=2, recompute=["generator"])
    assert same(both, expected)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"recompute": ["decoder"]}, "'decoder', which has no blocks that may run again"),
        ({"recompute": ["discriminator"]}, "this system has generator"),
        ({"recompute": ["generator"], "compile": ["generator"]}, "both name 'generator'"),
    ],
)
def test_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        DDPStrategy(tiny_system(), CPU, EngineConfig(batch_size=4, **settings))


def test_maps_that_are_made_again_are_the_same() -> None:
    torch.manual_seed(0)
    features, made = torch.randn(2, 3, requires_grad=True), []
    large = features * 2

    def make() -> Tensor:
        made.append(1)
        return features.detach() * 2

    with remade(large, make):
        result = large.square() + large.exp()
    result.sum().backward()
    assert made and features.grad is not None
    expected = 2 * (2 * large + large.exp()).detach()
    assert torch.equal(features.grad, expected)
