"""Every text-to-image system: trains, resumes bit-identically after a kill, is the same on two
ranks and over two engines, and scores the same in two shards. On two ranks: the encoders as well.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from t2i_hpc import evaluate
from t2i_hpc.common.collectives import mean_over_ranks
from t2i_hpc.common.errors import USER_ERROR
from t2i_hpc.common.files import read_json_lines
from t2i_hpc.common.seeds import noise
from t2i_hpc.config.engine import EngineConfig
from t2i_hpc.runs.checkpoint import TrainingProgress
from t2i_hpc.runs.layout import list_checkpoints
from t2i_hpc.systems import clip_gan, damsm_pretraining, one_stage_gan, staged_gan
from t2i_hpc.training.metrics_log import MetricsLog
from t2i_hpc.training.step import build_strategy, train_step
from t2i_hpc.training.world import World
from tests.support.preloaded import Nursery, nursery
from tests.support.ranks import SmallTrunk, run_ranks
from tests.support.training import losses_of, only_run, tiny_batch
from tests.systems.tiny import SYSTEMS, TINY, built, built_encoders

BATCH, STEPS = 4, 2
# Softmax over tokens removes what all keys share; Adam makes steps of the rounding that is left.
NO_GRADIENT = ".key.bias"
# Adam divides a gradient by its size: the rounding of a small one moves its weight by far more.
TOLERANCE = {torch.float64: 1e-7, torch.float32: 3e-5}
ENGINES = ("ddp", "deepspeed")
TRAINED = (*SYSTEMS, "damsm")
# What ZeRO keeps depends on what is trained: one part or more, with encoders or frozen parts.
KILLED = [
    *((name, "ddp") for name in SYSTEMS),
    *(
        (name, "deepspeed")
        for name in ("bert", "clip_gan", "one_stage_gan", "projected", "attn_gan")
    ),
]
# The second is imported by the first at its first start, with much of torch's compiler.
DEEPSPEED = ("deepspeed", "deepspeed.runtime.zero.muon.muon_optimizer")
IMAGES = 16
LENGTH = (f"engine.images={IMAGES}", "engine.checkpoint.every_images=4")
EVALUATION = (
    "evaluation=demo",
    "evaluation.detector=efficientnet_lite0",
    "device=cpu",
    "threads=1",
    "evaluation.images=8",
    "evaluation.real_images=8",
    "evaluation.batch_size=4",
    "evaluation.metrics=[kid]",  # takes the features themselves, in order
    "evaluation.kid_subset_size=4",
)
Trained = tuple[list[dict[str, float]], dict[str, torch.Tensor]]


@pytest.fixture(scope="module")
def home() -> Iterator[Nursery]:
    with nursery(*DEEPSPEED) as made:
        yield made


@pytest.mark.parametrize(("name", "engine"), KILLED)
def test_a_killed_run_resumes_bit_identically_and_scores_the_same(
    name: str, engine: str, shards: Path, home: Nursery, tmp_path: Path
) -> None:
    def session(folder: Path, before: Callable[[], None] | None = None) -> int:
        folder.mkdir(exist_ok=True)
        overrides = [*SYSTEMS[name], *TINY, *LENGTH, f"engine={engine}", f"data.path={shards}"]
        rank = home.train([*overrides, f"runs={folder}"], folder / "log", {}, before)
        code = rank.wait()
        assert code == (-signal.SIGKILL if before else 0), rank.log.read_text()
        return max(list_checkpoints(only_run(folder)))

    assert 0 < session(tmp_path / "cut", die_in_the_third_step) < IMAGES
    assert session(tmp_path / "cut") == session(tmp_path / "whole") == IMAGES
    cut, whole = (only_run(tmp_path / folder) for folder in ("cut", "whole"))
    assert_same_bits(cut, whole)
    assert losses_of(cut) == losses_of(whole)
    assert (cut / "samples" / f"{IMAGES:010d}.png").is_file()
    if engine == "ddp":  # weights alone are scored
        assert scored(cut, 2) == pytest.approx(scored(whole, 1), rel=1e-6)


def die_in_the_third_step() -> None:
    """Let this process kill itself, by kill -9, when it is about to write that step down."""
    add = MetricsLog.add

    def killing(records: MetricsLog, progress: TrainingProgress, *values: Any) -> None:
        if progress.step == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        add(records, progress, *values)

    setattr(MetricsLog, "add", killing)  # noqa: B010 (mypy lets nobody assign to a method)


def assert_same_bits(one: Path, two: Path) -> None:
    assert one.name == two.name
    for file in ("weights", "optimizers"):
        place = f"checkpoints/{IMAGES:010d}/{file}.safetensors"
        ours, theirs = load_file(one / place), load_file(two / place)
        assert ours.keys() == theirs.keys()
        assert not [key for key in ours if not torch.equal(ours[key], theirs[key])]


def scored(run: Path, shards: int) -> float:
    """Evaluate the newest checkpoint in some parts; return its score."""
    overrides = [f"run={run}", *EVALUATION, f"evaluation.shards={shards}"]
    if "fd_weight: 0.01" in (run / "config.yaml").read_text():  # it was trained through Lite0
        assert evaluate.COMMAND.main(overrides) == USER_ERROR
        overrides.append("evaluation.detector=efficientnet_lite2")
    assert evaluate.COMMAND.main(overrides) == 0
    (row,) = read_json_lines(run / "scores.jsonl")
    assert (row["images"], row["n"], row["n_real"]) == (IMAGES, 8, 8)
    return float(row["value"])


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Trained]]:
    """What every system becomes on one rank and on two."""
    found = []
    for size in (1, 2):
        folder = tmp_path_factory.mktemp(f"world{size}")
        run_ranks(train_all, size, folder)
        ranks = [torch.load(folder / f"{rank}.pt") for rank in range(size)]
        for name, (_, weights) in ranks[0].items():
            for other in ranks[1:]:
                assert all(torch.equal(v, other[name][1][k]) for k, v in weights.items()), name
        found.append(ranks[0])
    return found


@pytest.mark.parametrize("name", TRAINED)
def test_two_ranks_train_as_one_does(worlds: list[dict[str, Trained]], name: str) -> None:
    """In float64, where rounding is no longer seen."""
    (losses, weights), (others, other_weights) = (world[name] for world in worlds)
    for ours, theirs in zip(losses, others, strict=True):
        assert theirs == pytest.approx(ours, rel=1e-9)
    for key, value in weights.items():
        if value.is_floating_point():
            tolerance = TOLERANCE[torch.float64]
            torch.testing.assert_close(other_weights[key], value, rtol=0, atol=tolerance, msg=key)


@pytest.mark.parametrize("name", SYSTEMS)
def test_zero_trains_as_ddp_does(worlds: list[dict[str, Trained]], name: str) -> None:
    """On two ranks, in float32; products of matrices and vectors round by where memory begins."""
    ddp, zero = (worlds[1][f"{name} {engine}"] for engine in ENGINES)
    for ours, theirs in zip(ddp[0], zero[0], strict=True):
        assert theirs == pytest.approx(ours, rel=1e-5)
    for key, value in ddp[1].items():
        if not key.endswith(NO_GRADIENT):
            tolerance = TOLERANCE[torch.float32]
            torch.testing.assert_close(zero[1][key], value, rtol=0, atol=tolerance, msg=key)


def train_all(world: World) -> dict[str, Trained]:
    """Train every system; on two ranks in float32 with both engines too."""
    found = {name: train_one(name, world, "ddp", torch.float64) for name in TRAINED}
    if world.size == 1:
        return found
    for engine in ENGINES:
        for name in SYSTEMS:
            found[f"{name} {engine}"] = train_one(name, world, engine, torch.float32)
    return found


def train_one(name: str, world: World, engine: str, precision: torch.dtype) -> Trained:
    """Run some steps; return their losses, means over the ranks, and the weights."""
    system = shaken(name, precision)
    runner = build_strategy(system, world, EngineConfig(name=engine, batch_size=BATCH))
    share, losses = BATCH // world.size, []
    for step in range(STEPS):
        first = step * BATCH + world.rank * share
        latent = noise(1, "noise", range(first, first + share), system.noise_width)
        values = train_step(runner, tiny_batch(share, first), latent.to(precision), step * BATCH)
        means = mean_over_ranks(torch.stack([value.double() for value in values.values()]))
        losses.append(dict(zip(values, means.tolist(), strict=True)))
    state = system.modules.state_dict()
    return losses, {name: value.clone() for name, value in state.items()}


def shaken(name: str, precision: torch.dtype) -> Any:
    """Build a system whose weights are none of them zero, in `precision` throughout."""
    torch.manual_seed(0)
    system = built_encoders() if name == "damsm" else built(name)
    if "image_encoder" in system.modules:
        encoder = system.modules["image_encoder"]
        encoder.trunk = SmallTrunk(encoder).requires_grad_(False)
    with torch.no_grad():
        for parameter in system.modules.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
    for module in (clip_gan, one_stage_gan, staged_gan, damsm_pretraining):
        vars(module)["scale_images"] = lambda images: images.to(precision) / 127.5 - 1.0
    system.modules.to(precision)
    if getattr(system, "frechet", None) is not None:  # as a session measures training images
        term = system.frechet
        found = term.features(torch.rand(8, 3, 64, 64).to(precision) * 2 - 1).double()
        term.moments.set_real(len(found), found.sum(0), found.T @ found)
    return system
