"""Builds of Adam agree, exchange their moments, and are refused where they cannot be had."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from t2i_hpc.common.errors import ConfigurationError
from t2i_hpc.config.engine import EngineConfig
from t2i_hpc.systems.base import OptimizerSettings
from t2i_hpc.training import ddp
from t2i_hpc.training.ddp import DDPStrategy
from t2i_hpc.training.optimizers import (
    build_optimizer,
    check_build,
    find_apex_adam,
    read_moments,
    reset_moments,
    write_moments,
)
from t2i_hpc.training.step import train_step
from t2i_hpc.training.vector_adam import VectorAdam
from t2i_hpc.training.world import World
from tests.support.toys import Toy, toy_batch

CPU = torch.device("cpu")
DEEPSPEED = pytest.param("deepspeed", marks=pytest.mark.slow)  # compiles itself for a minute
FUSED_DEEPSPEED = "deepspeed on a GPU"
BUILDS = ["adam", "fused", "apex", DEEPSPEED, FUSED_DEEPSPEED]
SETTINGS = OptimizerSettings(1e-2, (0.5, 0.9))
# As NVIDIA's: moments of a parameter in its state, the count of steps in its group.
FUSED_ADAM = """
import torch

class FusedAdam(torch.optim.Optimizer):
    def __init__(self, params, lr=1e-3, bias_correction=True, betas=(0.9, 0.999), eps=1e-8,
                 adam_w_mode=True, weight_decay=0.0, amsgrad=False, set_grad_none=True,
                 capturable=False, master_weights=False):
        assert adam_w_mode is False
        super().__init__(params, dict(lr=lr, betas=betas, eps=eps))

    def zero_grad(self):
        for group in self.param_groups:
            for p in group["params"]:
                p.grad = None

    @torch.no_grad()
    def step(self, closure=None, grads=None, output_params=None, scale=None, grad_norms=None,
             grad_scaler=None):
        if any(p is not None for p in [grads, output_params, scale, grad_norms]):
            raise RuntimeError("FusedAdam has been updated")
        for group in self.param_groups:
            group["step"] = group.get("step", 0) + 1
            (b1, b2), t = group["betas"], group["step"]
            for p in group["params"]:
                state = self.state[p]
                if not state:
                    state["exp_avg"] = torch.zeros_like(p)
                    state["exp_avg_sq"] = torch.zeros_like(p)
                state["exp_avg"].lerp_(p.grad, 1 - b1)
                state["exp_avg_sq"].mul_(b2).addcmul_(p.grad, p.grad, value=1 - b2)
                mean = state["exp_avg"] / (1 - b1**t)
                size = (state["exp_avg_sq"] / (1 - b2**t)).sqrt() + group["eps"]
                p.sub_(group["lr"] * mean / size)
"""


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 1))


def train(part: nn.Module, optimizer: torch.optim.Optimizer, first: int, last: int) -> None:
    for step in range(first, last):
        inputs = torch.randn(8, 4, generator=torch.Generator().manual_seed(step))
        part.zero_grad()
        part(inputs).square().mean().backward()
        with torch.no_grad():
            optimizer.step()


def build(kind: str, part: nn.Module) -> torch.optim.Optimizer:
    if kind == "apex":  # refused on the CPU, where only the stand-in runs
        return find_apex_adam()(  # type: ignore[no-any-return]
            part.parameters(), lr=1e-2, betas=(0.5, 0.9), eps=1e-8, adam_w_mode=False
        )
    if kind == FUSED_DEEPSPEED:
        return build_optimizer(part, SETTINGS, "deepspeed", torch.device("cuda"))
    return build_optimizer(part, SETTINGS, kind, CPU)


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """What DeepSpeed's FusedAdam computes on a GPU, with its own code around it."""
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    fused_adam = importlib.import_module("deepspeed.ops.adam.fused_adam")
    builder = SimpleNamespace(load=lambda: SimpleNamespace(multi_tensor_adam=adam_kernel))
    monkeypatch.setattr(fused_adam, "FusedAdamBuilder", lambda: builder)
    accelerator = SimpleNamespace(IntTensor=torch.IntTensor)
    monkeypatch.setattr(fused_adam, "get_accelerator", lambda: accelerator)
    monkeypatch.setattr(fused_adam, "multi_tensor_applier", lambda op, *rest: op(0, *rest))


def adam_kernel(  # noqa: PLR0917 (as NVIDIA's)
    chunk: int,
    overflow: Tensor,
    lists: Sequence[Sequence[Tensor]],
    lr: float,
    beta1: float,
    beta2: float,
    epsilon: float,
    step: int,
    *_: object,
) -> None:
    for gradient, weight, mean, square in zip(*lists, strict=True):
        mean.lerp_(gradient, 1 - beta1)
        square.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        size = (square / (1 - beta2**step)).sqrt() + epsilon
        weight.sub_(lr * (mean / (1 - beta1**step)) / size)


@pytest.fixture
def apex(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package that behaves like NVIDIA's."""
    install(tmp_path, monkeypatch)
    (tmp_path / "apex" / "optimizers").mkdir()
    (tmp_path / "apex" / "optimizers" / "__init__.py").write_text(FUSED_ADAM)


def install(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty package called apex, as the one on the registry is to us."""
    (folder / "apex").mkdir()
    (folder / "apex" / "__init__.py").write_text("")
    for name in ("apex", "apex.optimizers"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.syspath_prepend(folder)


@pytest.mark.usefixtures("apex", "kernel")
@pytest.mark.parametrize("kind", ["auto", "fused", "apex", DEEPSPEED, FUSED_DEEPSPEED])
def test_builds_agree_within_rounding(kind: str) -> None:
    ours, theirs = network(), network()
    train(ours, build("adam", ours), 0, 5)
    train(theirs, build(kind, theirs), 0, 5)
    for one, two in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.allclose(one, two, rtol=1e-5, atol=1e-6)


@pytest.mark.usefixtures("apex", "kernel")
@pytest.mark.parametrize("second", BUILDS)
@pytest.mark.parametrize("first", BUILDS)
def test_a_training_resumes_with_another_build(first: str, second: str) -> None:
    whole, part = network(), network()
    train(whole, build(first, whole), 0, 6)
    before = build(first, part)
    train(part, before, 0, 3)
    moments = {name: value.clone() for name, value in read_moments(part, before).items()}
    after = build(second, part)
    write_moments(part, after, moments)
    again = read_moments(part, after)
    assert again.keys() == moments.keys()
    assert all(torch.equal(again[name], value) for name, value in moments.items())
    train(part, after, 3, 6)
    for one, two in zip(whole.parameters(), part.parameters(), strict=True):
        if first == second:
            assert torch.equal(one, two)
        assert torch.allclose(one, two, rtol=1e-5, atol=1e-6)


@pytest.mark.usefixtures("apex", "kernel")
@pytest.mark.parametrize("kind", BUILDS)
def test_forgotten_moments_are_those_of_a_new_build(kind: str) -> None:
    ours, theirs = network(), network()
    optimizer = build(kind, ours)
    train(ours, optimizer, 0, 3)
    theirs.load_state_dict(ours.state_dict())
    reset_moments(optimizer)
    train(ours, optimizer, 3, 6)
    train(theirs, build(kind, theirs), 3, 6)
    assert all(map(torch.equal, ours.parameters(), theirs.parameters()))


@pytest.mark.usefixtures("apex", "kernel")
@pytest.mark.parametrize("kind", BUILDS)
def test_checkpoints_count_the_steps_of_every_parameter(kind: str) -> None:
    part = network()
    optimizer = build(kind, part)
    train(part, optimizer, 0, 5)
    counts = {k: float(v) for k, v in read_moments(part, optimizer).items() if k.endswith("step")}
    assert counts == dict.fromkeys(counts, 5.0)
    assert len(counts) == 4


@pytest.mark.usefixtures("apex", "kernel")
@pytest.mark.parametrize("kind", ["fused", "apex", FUSED_DEEPSPEED])
def test_a_step_drives_every_build(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the signatures of NVIDIA's and DeepSpeed's FusedAdam, which are not torch's."""
    found = []
    for name in ("adam", kind):
        monkeypatch.setattr(ddp, "build_optimizer", lambda part, *_, name=name: build(name, part))
        strategy = DDPStrategy(Toy(), World(0, 1, 0, 1, CPU), EngineConfig(batch_size=4, clip=1.0))
        for step in range(3):
            train_step(strategy, *toy_batch(4, 4 * step), 4 * step)
        found.append(strategy)
    for ours, theirs in zip(*(e.system.modules.parameters() for e in found), strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-5, atol=1e-6)
    moments = found[1].read_moments()
    assert {float(value) for key, value in moments.items() if key.endswith("/step")} == {3.0}


def test_auto_is_fused_on_the_cpu() -> None:
    assert build("auto", network()).param_groups[0]["fused"]
    assert not build("adam", network()).param_groups[0]["fused"]


def test_before_the_first_step_there_are_no_moments() -> None:
    part = network()
    optimizer = build("adam", part)
    assert read_moments(part, optimizer) == {}
    write_moments(part, optimizer, {})
    assert not optimizer.state


def test_apex_is_refused_on_the_cpu() -> None:
    with pytest.raises(ConfigurationError, match="runs on GPUs only"):
        check_build("apex", CPU)


def test_the_registrys_apex_is_told_from_nvidias(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, monkeypatch)
    with pytest.raises(ConfigurationError, match="is another project; uninstall it") as caught:
        find_apex_adam()
    assert str(tmp_path / "apex" / "__init__.py") in str(caught.value)


def test_without_apex_its_source_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "apex", None)
    with pytest.raises(ConfigurationError, match="not installed: build NVIDIA's from") as caught:
        find_apex_adam()
    assert "github.com/NVIDIA/apex" in str(caught.value)


def test_adam_on_a_cpu_rounds_a_number_alike_wherever_its_tensor_lies() -> None:
    sizes = (1, 3, 100, 64, 1000, 31)
    values = [torch.randn(size, generator=torch.Generator().manual_seed(size)) for size in sizes]
    apart = [nn.Parameter(value.clone()) for value in values]
    joined = nn.Parameter(torch.cat(values))
    options: dict[str, Any] = {"lr": 1e-2, "betas": (0.5, 0.9), "eps": 1e-8}
    ours, whole = VectorAdam(apart, **options), VectorAdam([joined], **options)
    plain = [nn.Parameter(value.clone()) for value in values]
    single = torch.optim.Adam(plain, foreach=False, fused=False, **options)
    for number in range(5):
        joined.grad = torch.randn(joined.shape, generator=torch.Generator().manual_seed(number))
        for group in (apart, plain):
            for parameter, part in zip(group, joined.grad.split(list(sizes)), strict=True):
                parameter.grad = part.clone()
        for optimizer in (ours, whole, single):
            optimizer.step()
    assert torch.equal(torch.cat([*apart]), joined)
    torch.testing.assert_close(torch.cat([*apart]), torch.cat([*plain]), rtol=1e-5, atol=1e-6)
    assert [int(ours.state[parameter]["step"]) for parameter in apart] == [5] * len(sizes)


def test_adam_on_a_cpu_keeps_the_layout_of_weights() -> None:
    weight = torch.randn(5, 3, 3, 3, generator=torch.Generator().manual_seed(0))
    last = nn.Parameter(weight.contiguous(memory_format=torch.channels_last))
    plain = nn.Parameter(weight.clone())
    for parameter in (last, plain):
        parameter.grad = torch.full_like(weight, 0.1) * weight  # plain strides for both
        VectorAdam([parameter], lr=1e-2).step()
    assert torch.equal(last, plain)
    assert last.is_contiguous(memory_format=torch.channels_last)
