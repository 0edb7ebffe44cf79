"""Within a step the host waits for the device nowhere: no hidden sync, no pageable copy.

A GPU is pretended for forwards, optimizers, averages and the watch for NaN and Inf. Backwards do
not run there: they run on the CPU, where every operation that reads a value is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from t2i_hpc.common.transfer import to_device
from t2i_hpc.config.engine import EngineConfig
from t2i_hpc.systems.base import Phase
from t2i_hpc.training.ddp import DDPStrategy
from t2i_hpc.training.step import train_step
from t2i_hpc.training.world import World
from tests.support.fake_gpu import GPU, WaitError, fake_gpu, move, moved
from tests.support.training import tiny_batch
from tests.systems.tiny import DAMSM as WITH_DAMSM
from tests.systems.tiny import SYSTEMS, built, built_encoders

DAMSM = "damsm"
CPU = World(0, 1, 0, 1, torch.device("cpu"))
TRAINED = ("system.text_encoder.training=damsm", "system.damsm.chunk=2", *WITH_DAMSM)


def build(name: str) -> Any:
    torch.manual_seed(0)
    return built_encoders() if name == DAMSM else built(name)


def step_on_a_fake_gpu(system: Any, optimizer: str, accumulate: int = 1) -> list[str]:
    """Run a step's forwards and updates; return the losses' names."""
    config = EngineConfig(batch_size=4, optimizer=optimizer, accumulate=accumulate)
    with fake_gpu():
        move(system.modules)
        strategy = _WithoutBackward(system, World(0, 1, 0, 1, GPU), config)
        noise = torch.empty(4, system.noise_width, device=GPU)
        return list(train_step(strategy, moved(tiny_batch()), noise))


class _WithoutBackward(DDPStrategy):
    def backward(self, phase: Phase, loss: Tensor) -> None:
        """Make up the gradients."""
        for parameter in self._parameters(phase.updates):
            parameter.grad = torch.empty_like(parameter)


@pytest.mark.parametrize("name", [*SYSTEMS, DAMSM])
def test_forwards_and_updates_wait_nowhere(name: str) -> None:
    system = build(name)
    phases = {key.partition("/")[0] for key in step_on_a_fake_gpu(system, "fused")}
    assert phases == {phase.name for phase in system.phases}


def test_options_wait_nowhere() -> None:
    step_on_a_fake_gpu(built("ssa_gan", *TRAINED), "adam", accumulate=2)


READS = {"_local_scalar_dense", "nonzero", "is_nonzero", "equal", "masked_select", "_unique2"}


class _NoReads(TorchDispatchMode):
    """Refuses what would read a value from the device."""

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Any = (), kwargs: Any = None
    ) -> Any:
        masked = func._opname in {"index", "index_put_"} and any(
            value is not None and value.dtype == torch.bool for value in args[1]
        )
        if masked or func._opname in READS:
            raise WaitError(str(func))
        return func(*args, **(kwargs or {}))


class _Watched(DDPStrategy):
    def backward(self, phase: Phase, loss: Tensor) -> None:
        """Differentiate, reading nothing."""
        with _NoReads():  # type: ignore[no-untyped-call]
            super().backward(phase, loss)


@contextmanager
def as_one_of_two(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Take the way of several ranks, alone."""
    with monkeypatch.context() as patched:
        patched.setattr(torch.distributed, "all_reduce", lambda *_, **__: None)
        patched.setattr("t2i_hpc.models.global_batch.world_size", lambda: 2)
        yield


@pytest.mark.parametrize("name", [*SYSTEMS, DAMSM])
def test_backwards_wait_nowhere(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    system = build(name)
    strategy = _Watched(system, CPU, EngineConfig(batch_size=4, optimizer="fused"))
    noise = torch.randn(4, system.noise_width)
    with as_one_of_two(monkeypatch):
        train_step(strategy, tiny_batch(), noise)


SINS: dict[str, Callable[[Tensor], object]] = {
    "reads a value": lambda fakes: float(fakes.mean()),
    "decides by a value": lambda fakes: bool((fakes > 0).any()),
    "picks by a mask": lambda fakes: fakes[fakes > 0],
    "brings a number": lambda fakes: fakes * torch.tensor([2.0], device=fakes.device),
    "brings another number": lambda fakes: fakes * fakes.new_tensor([2.0]),
    "copies to the host": lambda fakes: fakes.cpu(),
    "copies pageable memory": lambda fakes: torch.zeros(3).to(fakes.device, non_blocking=True),
    "waits for its copy": lambda fakes: torch.zeros(3).pin_memory().to(fakes.device),
    "mixes devices": lambda fakes: fakes + torch.zeros(3),
}


@pytest.mark.parametrize("sin", list(SINS))
def test_the_fake_gpu_sees(sin: str) -> None:
    with fake_gpu(), pytest.raises((WaitError, RuntimeError, NotImplementedError)):
        SINS[sin](torch.ones(3, device=GPU))


def test_the_fake_gpu_lets_pass_what_waits_for_nothing() -> None:
    with fake_gpu():
        assert to_device(torch.zeros(3), GPU).device == GPU
        assert (torch.ones(3, device=GPU) * 2.0).sum().shape == ()


def test_reads_in_a_backward_are_seen() -> None:
    with _NoReads():  # type: ignore[no-untyped-call]
        for read in (lambda v: v.item(), lambda v: bool(v > 0), lambda v: v[v > 0]):
            with pytest.raises(WaitError):
                read(torch.ones(()))
