"""Compiled phases: the training of eager ones, proven at a start, whole, on any number of ranks.

As far as tracing and differentiating go; what Inductor makes of it takes minutes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters

from t2i_hpc.common.errors import ConfigurationError
from t2i_hpc.config.engine import EngineConfig
from t2i_hpc.systems import build_system
from t2i_hpc.systems.base import Losses, Phase, Term
from t2i_hpc.training import compilation
from t2i_hpc.training.compilation import CompiledLoss
from t2i_hpc.training.ddp import DDPStrategy
from t2i_hpc.training.step import train_step
from t2i_hpc.training.world import World
from tests.support.ranks import SmallTrunk, run_ranks
from tests.support.toys import Toy, toy_batch
from tests.support.training import tiny_batch
from tests.systems.tiny import NO_DAMSM, built_encoders, configured

CPU = World(0, 1, 0, 1, torch.device("cpu"))
# Pixels, settings and what DAMSM's sharpening leaves of float32.
SYSTEMS: dict[str, tuple[int, tuple[str, ...], float]] = {
    "ssa_gan": (16, (), 1e-4),
    "df_gan": (32, (), 1e-4),
    "projected": (16, (), 1e-4),
    "clip_gan": (16, (), 1e-4),  # its penalty is one by features
    "attn_gan": (64, NO_DAMSM, 1e-4),
    "attn_dcgan": (64, (), 1e-4),
    "bert": (16, (), 1e-3),  # all phases of ssa_gan, and encoders that are trained
    "encoders": (64, (), 1e-3),  # of pretrain, whose captions are packed
}


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(compilation, "_BACKEND", "aot_eager")
    monkeypatch.setattr(nn.Module, "compile", lambda network: None)  # test_step.py compiles it
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def built(name: str) -> Any:
    """Build a tiny system, smaller than any that is offered, none of whose weights is zero."""
    side, settings, _ = SYSTEMS[name]
    torch.manual_seed(0)
    if name == "encoders":
        system: Any = built_encoders()
    else:
        config = configured(name, *settings).system
        config.resolution = side
        system = build_system(config, 20)
    if getattr(system, "image_encoder", None) is not None:
        system.image_encoder.trunk = SmallTrunk(system.image_encoder).requires_grad_(False)
    with torch.no_grad():
        for parameter in system.modules.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
    return system


def one_step(strategy: Any, step: int, rows: slice = slice(None)) -> dict[str, float]:
    """Train a step on four images, or on a rank's rows of them."""
    system = strategy.system
    batch, side = tiny_batch(4, 4 * step), system.resolution
    noise = torch.randn(4, system.noise_width, generator=torch.Generator().manual_seed(step))
    names = ("images", "tokens", "lengths", "classes", "positions")
    own = replace(batch, **{name: getattr(batch, name)[rows] for name in names})
    own = replace(own, images=own.images[:, :, :side, :side].contiguous())
    torch.manual_seed(step)
    return {k: float(v) for k, v in train_step(strategy, own, noise[rows], 4 * step).items()}


def weights(system: Any) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in system.modules.state_dict().items()}


@pytest.mark.parametrize(
    "name", ["df_gan", "projected", "clip_gan", "attn_dcgan", "bert", "encoders"]
)
def test_phases_compiled_whole_train_as_eager_ones(name: str) -> None:
    settings = EngineConfig(batch_size=4, accumulate=2 if name == "df_gan" else 1)
    plain = DDPStrategy(built(name), CPU, settings)
    compiled = DDPStrategy(built(name), CPU, replace(settings, compile=["all"]))
    for step in range(2):
        theirs, ours = one_step(plain, step), one_step(compiled, step)
        assert ours.keys() == theirs.keys()
        for term, value in theirs.items():
            assert ours[term] == pytest.approx(value, rel=SYSTEMS[name][2], abs=SYSTEMS[name][2])
    # One graph each: whole, and the same one for the proof, each micro-batch and each step.
    assert counters["stats"]["unique_graphs"] == sum(len(plain.parts(p)) for p in plain.phases)
    assert not counters["graph_break"]
    assert weights(plain.system).keys() == weights(compiled.system).keys()


def test_inductor_computes_a_penalty_as_eager_kernels_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compilation, "_BACKEND", "inductor")
    config = EngineConfig(batch_size=4, compile=["penalty"])
    eager, compiled = (DDPStrategy(built("ssa_gan"), CPU, c) for c in (EngineConfig(), config))
    for step in range(2):
        theirs, ours = one_step(eager, step), one_step(compiled, step)
        assert ours == pytest.approx(theirs, rel=1e-4)
    assert counters["inductor"]


def test_a_resumed_run_is_bit_identical_though_it_proves_its_phases_again() -> None:
    config = EngineConfig(batch_size=4, compile=["penalty"])
    strategy = DDPStrategy(built("ssa_gan"), CPU, config)
    one_step(strategy, 0)
    saved, moments = weights(strategy.system), strategy.read_moments()
    moments = {name: value.clone() for name, value in moments.items()}
    expected = one_step(strategy, 1)
    resumed = DDPStrategy(built("ssa_gan"), CPU, config)
    resumed.system.modules.load_state_dict(saved)
    resumed.write_moments(moments)
    assert one_step(resumed, 1) == expected
    theirs = weights(strategy.system)
    assert all(torch.equal(value, theirs[name]) for name, value in weights(resumed.system).items())


def test_the_proof_moves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compilation, "_BACKEND", "eager")
    system = built("attn_gan")  # its discriminators have batch norms
    phase = system.phases[0]
    batch = tiny_batch()
    context = system.begin(batch, torch.randn(4, system.noise_width))
    before, random = weights(system), torch.get_rng_state()
    loss = CompiledLoss(phase, phase.loss, system, CPU, "fp32")
    loss._prove(context)
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(before[name], value) for name, value in weights(system).items())
    assert all(parameter.grad is None for parameter in system.modules.parameters())
    context.fake[system.resolution].sum().backward()  # the generator's graph is as it was


def spoiled(factor: float) -> Callable[[Any], Losses]:
    """A loss that torch compiles wrongly."""

    def loss(context: Any) -> Losses:
        _, noise = context
        network: Any = toy.modules["a"]
        value = network.common(noise).square().mean()
        return {"size": Term(value * (factor if torch.compiler.is_compiling() else 1.0))}

    toy = Toy()
    vars(loss)["toy"] = toy
    return loss


@pytest.mark.parametrize(("factor", "refused"), [(1.0, False), (1.001, True)])
def test_a_phase_that_is_compiled_wrongly_is_refused(factor: float, refused: bool) -> None:
    loss = spoiled(factor)
    toy = vars(loss)["toy"]
    toy.phases = [Phase("a", ("a",), loss)]
    strategy = DDPStrategy(toy, CPU, EngineConfig(batch_size=4, compile=["a"]))
    if not refused:
        train_step(strategy, *toy_batch(4), 0)
        return
    words = "phase a is compiled wrongly by torch .* differs from the eager one by 1.0e-03, where 1"
    with pytest.raises(ConfigurationError, match=words):
        train_step(strategy, *toy_batch(4), 0)


def test_a_phase_that_cannot_be_compiled_whole_is_refused() -> None:
    toy = Toy()  # the values of a batch decide which way it takes
    strategy = DDPStrategy(toy, CPU, EngineConfig(batch_size=4, compile=["b"]))
    with pytest.raises(ConfigurationError, match="phase b cannot be compiled whole by torch"):
        train_step(strategy, *toy_batch(4), 0)


def test_names_and_versions_are_checked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigurationError, match="the phases a, b, the networks a, b, and all"):
        DDPStrategy(Toy(), CPU, EngineConfig(compile=["c"]))
    monkeypatch.setattr(torch, "__version__", "2.10.1")
    with pytest.raises(ConfigurationError, match=r"the phase a, which needs torch 2\.11"):
        DDPStrategy(Toy(), CPU, EngineConfig(compile=["a"]))


def on_ranks(world: World) -> dict[str, dict[str, float]]:
    """Train compiled phases, with a penalty and with batch norms over ranks."""
    compilation._BACKEND = "aot_eager"
    found = {}
    share = 4 // world.size
    rows = slice(world.rank * share, (world.rank + 1) * share)
    for name, phase in (("ssa_gan", "penalty"), ("attn_gan", "discriminator16")):
        config = EngineConfig(batch_size=4, compile=[phase])
        strategy = DDPStrategy(built(name), world, config)
        losses = [one_step(strategy, step, rows) for step in range(2)]
        found[name] = {f"{step}/{k}": v for step, row in enumerate(losses) for k, v in row.items()}
    return found


def test_two_ranks_train_as_one(tmp_path: Path) -> None:
    run_ranks(on_ranks, 2, tmp_path)
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    for name in ranks[0]:
        strategy = DDPStrategy(built(name), CPU, EngineConfig(batch_size=4))
        for step in range(2):
            for term, value in one_step(strategy, step).items():
                ours = sum(rank[name][f"{step}/{term}"] for rank in ranks) / 2
                assert ours == pytest.approx(value, rel=1e-4, abs=1e-4), (name, term)
