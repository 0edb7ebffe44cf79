"""A step on a GPU: every system, precision and optimizer; against the CPU's; without a sync."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from t2i_hpc.common.errors import UserError
from t2i_hpc.training.step import train_step
from tests.gpu.trained import BATCH, inputs, largest_difference, strategy_of, train
from tests.systems.tiny import SYSTEMS

CPU = torch.device("cpu")
# Nothing random but the noise that is given: losses are the CPU's.
SAME_ON_THE_CPU = ("ssa_gan", "affine", "df_gan")
# bf16 and fp16 as precision.py states them; tf32 rounds products to ten bits as fp16 does.
TOLERANCES = {"fp32": 1e-3, "tf32": 1e-2, "bf16": 2e-2, "fp16": 2e-2}


@contextmanager
def syncs_are_errors(device: torch.device) -> Iterator[None]:
    """Let torch raise where the host would wait for the GPU."""
    if device.type != "cuda":
        yield
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("name", SYSTEMS)
def test_every_system_takes_a_step_without_a_sync(name: str, device: torch.device) -> None:
    strategy = strategy_of(name, device, precision="fp32")
    losses = train(strategy, 2)  # the second has everything that is made once
    if name in SAME_ON_THE_CPU:
        there = train(strategy_of(name, CPU, precision="fp32"), 2)
        assert largest_difference(there, losses) < TOLERANCES["fp32"]
    batch, noise = inputs(strategy, 2)
    with syncs_are_errors(device):
        train_step(strategy, batch, noise, 2 * BATCH)


@pytest.mark.parametrize("precision", TOLERANCES)
def test_every_precision(precision: str, device: torch.device) -> None:
    exact = train(strategy_of("ssa_gan", CPU, precision="fp32"), 3)
    strategy = strategy_of("ssa_gan", device, precision=precision, channels_last=True)
    assert largest_difference(exact, train(strategy, 3)) < TOLERANCES[precision]


@pytest.mark.parametrize("kind", ["fused", "deepspeed", "apex"])
def test_every_optimizer_steps_as_adam_does(kind: str, device: torch.device) -> None:
    expected = train(strategy_of("ssa_gan", device, optimizer="adam"), 3)
    try:
        strategy = strategy_of("ssa_gan", device, optimizer=kind)
    except UserError as error:  # not installed, or nothing to compile it with
        pytest.skip(str(error))
    assert largest_difference(expected, train(strategy, 3)) < 1e-3


def test_micro_batches(device: torch.device) -> None:
    losses = train(strategy_of("ssa_gan", device, accumulate=2), 2)
    assert len(losses) == 2
