"""Builds of Adam agree, exchange their moments, and are refused where they cannot be had."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from t2i_hpc.common.errors import ConfigurationError
from t2i_hpc.common.step import OptimiserSettings
from t2i_hpc.engine.engines.optimisers import (
    build_optimiser,
    find_apex_adam,
    forget_moments,
    read_moments,
    write_moments,
)

CPU = torch.device("cpu")
DEEPSPEED = pytest.param("deepspeed", marks=pytest.mark.slow)  # compiles itself for a minute
BUILDS = ["adam", "fused", "apex", DEEPSPEED]
SETTINGS = OptimiserSettings(1e-2, (0.5, 0.9))
# As NVIDIA's: moments of a parameter in its state, the count of steps in its group.
FUSED_ADAM = """
import torch

class FusedAdam(torch.optim.Optimizer):
    def __init__(self, params, lr, betas, eps, adam_w_mode):
        assert adam_w_mode is False
        super().__init__(params, dict(lr=lr, betas=betas, eps=eps))

    @torch.no_grad()
    def step(self):
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


def train(part: nn.Module, optimiser: torch.optim.Optimizer, first: int, last: int) -> None:
    for step in range(first, last):
        inputs = torch.randn(8, 4, generator=torch.Generator().manual_seed(step))
        optimiser.zero_grad()
        part(inputs).square().mean().backward()
        optimiser.step()


def build(kind: str, part: nn.Module) -> torch.optim.Optimizer:
    if kind == "apex":  # refused on the CPU, where only the stand-in runs
        return find_apex_adam()(  # type: ignore[no-any-return]
            part.parameters(), lr=1e-2, betas=(0.5, 0.9), eps=1e-8, adam_w_mode=False
        )
    return build_optimiser(part, SETTINGS, kind, CPU)


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


@pytest.mark.usefixtures("apex")
@pytest.mark.parametrize("kind", ["auto", "fused", "apex", DEEPSPEED])
def test_builds_agree_within_rounding(kind: str) -> None:
    ours, theirs = network(), network()
    train(ours, build("adam", ours), 0, 5)
    train(theirs, build(kind, theirs), 0, 5)
    for one, two in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.allclose(one, two, rtol=1e-5, atol=1e-6)


@pytest.mark.usefixtures("apex")
@pytest.mark.parametrize("second", BUILDS)
@pytest.mark.parametrize("first", BUILDS)
def test_a_training_goes_on_with_another_build(first: str, second: str) -> None:
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


@pytest.mark.usefixtures("apex")
@pytest.mark.parametrize("kind", BUILDS)
def test_forgotten_moments_are_those_of_a_new_build(kind: str) -> None:
    ours, theirs = network(), network()
    optimiser = build(kind, ours)
    train(ours, optimiser, 0, 3)
    theirs.load_state_dict(ours.state_dict())
    forget_moments(optimiser)
    train(ours, optimiser, 3, 6)
    train(theirs, build(kind, theirs), 3, 6)
    assert all(map(torch.equal, ours.parameters(), theirs.parameters()))


def test_auto_is_plain_on_the_cpu() -> None:
    assert not build("auto", network()).param_groups[0]["fused"]
    assert build("fused", network()).param_groups[0]["fused"]


def test_before_the_first_step_there_are_no_moments() -> None:
    part = network()
    optimiser = build("adam", part)
    assert read_moments(part, optimiser) == {}
    write_moments(part, optimiser, {})
    assert not optimiser.state


def test_apex_is_refused_on_the_cpu() -> None:
    with pytest.raises(ConfigurationError, match="runs on GPUs only"):
        build_optimiser(network(), SETTINGS, "apex", CPU)


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
