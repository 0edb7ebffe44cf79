"""A step that is counted on shapes alone is the step that is taken."""

from __future__ import annotations

from functools import cache

import pytest
import torch
import torch.distributed as dist

from t2i_hpc.config.compose import compose_config
from t2i_hpc.config.engine import EngineConfig
from t2i_hpc.config.tasks import TrainConfig
from t2i_hpc.models.global_batch import GlobalBatchNorm2d
from t2i_hpc.systems import outline_system
from t2i_hpc.training.cost import Captions, count_step
from t2i_hpc.training.step_count import (
    BACKWARD,
    FORWARD,
    UPDATE,
    StepCount,
    count_operations,
)
from tests.support.training import tiny_system

pytestmark = pytest.mark.usefixtures("of_no_group")

CAPTIONS = Captions(18, 20)


@cache
def counted(images: int = 4, ranks: int = 1, precision: str = "fp32") -> StepCount:
    return count_operations(
        tiny_system(), EngineConfig(precision=precision), CAPTIONS, images, ranks
    )


def test_operations_are_those_of_a_real_step() -> None:
    real = count_step(tiny_system(), CAPTIONS)
    # A packed LSTM leaves padding out, fakes do not.
    assert counted().flops / 4 == pytest.approx(real, rel=0.01)


def test_bytes_follow_the_precision() -> None:
    four, half = counted(), counted(8, precision="bf16")
    assert half.flops == pytest.approx(2 * four.flops, rel=0.02)
    assert half.bytes < 1.8 * four.bytes  # half as many a number, and parameters are read once
    assert "bfloat16" in {kernel.arithmetic for kernel in half.kernels if kernel.flops}
    assert {kernel.arithmetic for kernel in four.kernels if kernel.flops} == {"float32"}


def test_every_phase_has_its_kernels() -> None:
    phases = {phase.name for phase in tiny_system().phases}
    found = {(kernel.phase, kernel.part) for kernel in counted().kernels}
    assert found >= {(name, part) for name in phases for part in (FORWARD, BACKWARD, UPDATE)}


def test_layers_and_gradients_are_exchanged_among_ranks() -> None:
    system = tiny_system()
    norms = sum(isinstance(m, GlobalBatchNorm2d) for m in system.generator.modules())
    count = counted(ranks=64)
    parts = [part for c, times in count.collectives.items() for part in [c.part] * times]
    assert parts.count(BACKWARD) >= norms  # each way at least once
    assert parts.count(FORWARD) >= norms
    numbers = sum(parameter.numel() for parameter in system.generator.parameters())
    assert count.gradients["generator"] == 4 * numbers
    assert not counted().collectives
    assert not counted().gradients
    assert not dist.is_initialized()


@pytest.mark.parametrize("experiment", ["demo_dfgan", "demo_dmgan"])
def test_an_outline_is_enough(experiment: str) -> None:
    """No weights exist, and none are drawn."""
    config = compose_config("train", [f"experiment={experiment}"], TrainConfig)
    outline = outline_system(config.system, 20)
    assert outline is not None
    state = torch.get_rng_state()
    count = count_operations(outline, config.engine, CAPTIONS, 2, 2)
    assert count.flops > 0
    assert count.gradients
    assert torch.equal(torch.get_rng_state(), state)
