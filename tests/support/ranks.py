"""Trainings over real processes, many in one start: what every rank ends with.

A *case* is a tiny SSA-GAN with a strategy and its configuration. The ranks of a world run the
cases one after the other over gloo; the first one hands back losses, weights and moments.
"""

from __future__ import annotations

import functools
import gc
from collections import defaultdict
from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.multiprocessing.spawn import spawn

from t2i_hpc.common.collectives import mean_over_ranks, use_group
from t2i_hpc.common.seeds import noise, seed_step
from t2i_hpc.config.engine import EngineConfig
from t2i_hpc.models.image_encoder import ImageEncoder
from t2i_hpc.systems import one_stage_gan
from t2i_hpc.systems.encoders import scale_images
from t2i_hpc.systems.one_stage_gan import OneStageGAN
from t2i_hpc.training.optimizers import BUCKETS
from t2i_hpc.training.step import build_strategy, train_step
from t2i_hpc.training.world import World
from tests.support.training import tiny_batch, tiny_config

HEADS = ("regions", "code")


@dataclass(frozen=True)
class Case:
    """One training.

    Attributes:
        engine: its configuration; the batch size is set from `batch`.
        options: dotted keys of the system's configuration and their values.
        settings: what is replaced in every part's optimizer settings.
        double: float64 throughout, where rounding is no longer seen.
        steps: how many.
        batch: images of the global batch.
    """

    engine: EngineConfig = field(default_factory=EngineConfig)
    options: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    double: bool = False
    steps: int = 5
    batch: int = 4


@dataclass(frozen=True)
class Outcome:
    """What a training gave: losses of each step (means over the ranks), weights, moments."""

    losses: list[dict[str, float]]
    start: dict[str, Tensor]
    weights: dict[str, Tensor]
    moments: dict[str, Tensor]


def train_cases(cases: dict[str, Case], size: int, folder: Path) -> dict[str, Outcome]:
    """Run the cases in a world of `size` processes; fail where replicas ended apart."""
    run_ranks(_train_all, size, folder, cases)
    ranks = [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(size)]
    for name, outcome in ranks[0].items():
        for other in ranks[1:]:
            for key, value in outcome.weights.items():
                assert torch.equal(value, other[name].weights[key]), (name, key)
    outcomes: dict[str, Outcome] = ranks[0]
    return outcomes


def run_ranks(work: Callable[..., Any], size: int, folder: Path, *arguments: Any) -> None:
    """Call ``work(world, *arguments)`` in `size` processes; keep the results as ``RANK.pt``."""
    spawn(_one_rank, (size, str(folder), work, arguments), size)


def _one_rank(rank: int, size: int, folder: str, work: Callable[..., Any], arguments: Any) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=size)
    control, exchange = dist.new_group(backend="gloo"), dist.new_group()
    assert isinstance(control, dist.ProcessGroup)
    assert isinstance(exchange, dist.ProcessGroup)
    use_group(exchange)
    world = World(rank, size, rank, size, torch.device("cpu"), control)
    torch.save(work(world, *arguments), Path(folder) / f"{rank}.pt")
    use_group(None)
    gc.collect()  # gloo can abort at exit while a wrapped module still holds the group
    dist.destroy_process_group()


def _train_all(world: World, cases: dict[str, Case]) -> dict[str, Outcome]:
    return {name: train_case(case, world) for name, case in cases.items()}


def train_case(case: Case, world: World) -> Outcome:
    """Run one training on this rank."""
    system = build_case(case)
    start = copied(system)
    case.engine.batch_size = case.batch
    strategy = build_strategy(system, world, case.engine)
    losses = []
    for step in range(case.steps):
        values = train_step(strategy, *samples(case, step, world), step * case.batch)
        means = mean_over_ranks(torch.stack([value.double() for value in values.values()]))
        losses.append(dict(zip(values, means.tolist(), strict=True)))
    state = strategy.read_moments().items()
    moments = {k: v.clone() for k, v in state if not k.startswith(f"{BUCKETS}/")}  # DDP's alone
    return Outcome(losses, start, copied(system), moments)


def build_case(case: Case) -> OneStageGAN:
    """Build the system of a case, always with the same weights, none of which is zero."""
    torch.manual_seed(0)
    config = tiny_config(damsm=0.125)
    for key, value in case.options.items():
        *sections, name = key.split(".")
        setattr(functools.reduce(getattr, sections, config), name, value)
    system = OneStageGAN(config, 20)
    if system.image_encoder is not None:
        system.image_encoder.trunk = SmallTrunk(system.image_encoder).requires_grad_(False)
    with torch.no_grad():
        for name, parameter in system.modules.named_parameters():
            if not name.startswith("image_encoder.trunk"):
                parameter.add_(torch.randn_like(parameter), alpha=0.05)
    system.optimizers = {k: replace(v, **case.settings) for k, v in system.optimizers.items()}
    if case.double:
        system.modules.double()
    scale = double_images if case.double else scale_images
    vars(one_stage_gan)["scale_images"] = scale
    return system


class SmallTrunk(nn.Module):
    """Stands in for an image encoder's trunk, with its widths and a hundredth of its work."""

    def __init__(self, encoder: ImageEncoder) -> None:
        super().__init__()
        regions, code = (encoder.get_parameter(f"heads.{name}.weight") for name in HEADS)
        local, pooled = regions.shape[1], code.shape[1]
        self.early, self.late = nn.Conv2d(3, local, 8, 8), nn.Linear(local, pooled)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        local = self.early(images).tanh()
        return local, self.late(local.mean((2, 3)))


def samples(case: Case, step: int, world: World) -> tuple[Any, Tensor]:
    """Return this rank's share of a step's batch and noise."""
    share = case.batch // world.size
    first = step * case.batch + world.rank * share
    seed_step(1, step * case.batch)
    rows = noise(1, "noise", range(first, first + share), 100)
    return tiny_batch(share, first), rows.double() if case.double else rows


def copied(system: OneStageGAN) -> dict[str, Tensor]:
    """Return copies of all weights and buffers by name, but for those that never change."""
    state = system.modules.state_dict().items()
    return {name: value.clone() for name, value in state if "encoder.trunk" not in name}


def loss_differences(one: Outcome, two: Outcome) -> dict[str, float]:
    """Return for each term the largest difference over all steps by max(1, the term)."""
    assert len(one.losses) == len(two.losses)
    found = dict.fromkeys(one.losses[0], 0.0)
    for a, b in zip(one.losses, two.losses, strict=True):
        assert a.keys() == b.keys() == found.keys()
        for name in found:
            found[name] = max(found[name], abs(a[name] - b[name]) / max(1.0, abs(a[name])))
    return found


def weights_without_gradient(single: Outcome, double: Outcome) -> set[str]:
    """Return what moves in float32 by rounding alone, and the running means that follow it."""

    def moved(outcome: Outcome, name: str) -> float:
        return float((outcome.weights[name] - outcome.start[name]).double().norm())

    names = {name for name, value in single.weights.items() if value.is_floating_point()}
    idle = {name for name in names if moved(double, name) < 1e-3 * moved(single, name)}
    return idle | {name for name in names if name.endswith("running_mean")}


def weight_differences(one: Outcome, two: Outcome, but: Collection[str] = ()) -> dict[str, float]:
    """Return for each network ‖w₂ - w₁‖ by the size of its update ‖w₁ - w_start‖."""
    apart: dict[str, float] = defaultdict(float)
    moved: dict[str, float] = defaultdict(float)
    for name, value in one.weights.items():
        if value.is_floating_point() and name not in but:
            network = name.split(".")[0]
            apart[network] += float((two.weights[name] - value).double().square().sum())
            moved[network] += float((value - one.start[name]).double().square().sum())
    return {name: (apart[name] / moved[name]) ** 0.5 for name in apart if moved[name] > 0}


def assert_equal_bits(one: Outcome, two: Outcome) -> None:
    """Fail where losses, weights or moments differ at all."""
    assert one.losses == two.losses
    for ours, theirs in ((one.weights, two.weights), (one.moments, two.moments)):
        assert ours.keys() == theirs.keys()
        for name, value in ours.items():
            assert torch.equal(value, theirs[name]), name


def double_images(images: Tensor) -> Tensor:
    return images.double() / 127.5 - 1.0
