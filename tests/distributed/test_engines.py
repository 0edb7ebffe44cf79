"""DeepSpeed trains as DDP does: over stages, worlds, micro-batches, clipping and schedules."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from t2i_hpc.config.engine import EngineConfig, ScheduleConfig
from tests.support.ranks import (
    Case,
    Outcome,
    assert_equal_bits,
    loss_differences,
    train_cases,
    weight_differences,
)

STAGES = (0, 1, 2)
CLIP = 0.02
PLAIN = {"damsm.weight": 0.0}
# Of real and fake images in one backward; without it there are two of them, as is the default.
TOGETHER: dict[str, Any] = {"split_losses": False}
WARM = ScheduleConfig(warmup_images=4, decay="cosine", decay_images=8, floor=0.1)
# What a training is, and what is said to its engine.
KINDS: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "frozen": ({}, TOGETHER, {}),
    "damsm": ({"text_encoder.training": "damsm"}, TOGETHER, {}),
    "joint": ({"text_encoder.training": "joint"}, TOGETHER, {}),
    "clipped": (PLAIN, {"clip": CLIP, **TOGETHER}, {}),
    "accumulated": (PLAIN, {"accumulate": 2}, {}),
    "scheduled": (PLAIN, {"schedule": WARM, **TOGETHER}, {"restart_every": 6}),
    "bf16": (PLAIN, {"precision": "bf16", **TOGETHER}, {}),
    "channels_last": ({}, {"channels_last": True, **TOGETHER}, {}),
}


def cases() -> dict[str, Case]:
    """Each kind with DDP and with every stage."""
    found = {}
    names: dict[str, dict[str, Any]] = {"ddp": {"name": "ddp"}} | {
        f"zero-{stage}": {"name": "deepspeed", "zero_stage": stage} for stage in STAGES
    }
    for kind, (options, engine, settings) in KINDS.items():
        for name, strategy in names.items():
            config = EngineConfig(**engine, **strategy)
            batch = 4 * config.accumulate  # two images a rank and micro-batch
            found[f"{kind} {name}"] = Case(config, options, settings, steps=3, batch=batch)
    return found


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Outcome]:
    return train_cases(cases(), 1, tmp_path_factory.mktemp("one"))


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Outcome]:
    return train_cases(cases(), 2, tmp_path_factory.mktemp("two"))


EXACT = [kind for kind in KINDS if kind not in ("clipped", "channels_last")]


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("kind", EXACT)
def test_one_rank_is_equal_to_the_bit(one: dict[str, Outcome], kind: str, stage: int) -> None:
    assert_equal_bits(one[f"{kind} ddp"], one[f"{kind} zero-{stage}"])


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("kind", EXACT)
def test_two_ranks_are_equal_to_the_bit(two: dict[str, Outcome], kind: str, stage: int) -> None:
    ours, theirs = two[f"{kind} ddp"], two[f"{kind} zero-{stage}"]
    if (kind, stage) == ("accumulated", 2):
        assert_alike(ours, theirs)  # averages backward by backward: another order of sums
    else:
        assert_equal_bits(ours, theirs)


@pytest.mark.parametrize("stage", STAGES)
def test_clipped_gradients_differ_by_the_rounding_of_a_norm(
    one: dict[str, Outcome], two: dict[str, Outcome], stage: int
) -> None:
    for outcomes in (one, two):
        assert_alike(outcomes["clipped ddp"], outcomes[f"clipped zero-{stage}"])
    # β₁ is 0: the first moment is the generator's last gradient.
    moments = one["clipped ddp"].moments.items()
    parts = [value.flatten() for name, value in moments if is_first_moment(name)]
    assert float(torch.cat(parts).norm()) == pytest.approx(CLIP, rel=1e-3)


@pytest.mark.parametrize("stage", STAGES)
def test_channels_last_differs_by_the_order_of_sums(
    one: dict[str, Outcome], two: dict[str, Outcome], stage: int
) -> None:
    """ZeRO's slices of weights are contiguous; the images that pass through them are not."""
    for outcomes in (one, two):
        ours, theirs = outcomes["channels_last ddp"], outcomes[f"channels_last zero-{stage}"]
        assert max(loss_differences(ours, theirs).values()) < 1e-5
        # Adam makes steps of the rounding that is left where a gradient is nothing else.
        assert max(weight_differences(ours, theirs).values()) < 1e-3


def is_first_moment(name: str) -> bool:
    return name.startswith("generator/") and name.endswith("/exp_avg")


def assert_alike(ours: Outcome, theirs: Outcome) -> None:
    assert max(loss_differences(ours, theirs).values()) < 1e-5
    assert max(weight_differences(ours, theirs).values()) < 1e-4
