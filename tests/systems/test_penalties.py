"""Which penalty, how often, how precise: values, costs, and that any session computes the same."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from t2i_hpc.common.errors import ConfigurationError
from t2i_hpc.common.seeds import keyed_normal
from t2i_hpc.config.engine import EngineConfig
from t2i_hpc.losses.finite_difference import finite_difference_penalty
from t2i_hpc.systems import one_stage_gan
from t2i_hpc.training.cost import Captions, count_flops, count_step
from t2i_hpc.training.ddp import DDPStrategy
from t2i_hpc.training.step import train_step
from t2i_hpc.training.world import World
from tests.common.test_double_backward import Recorder
from tests.support.products import products_of
from tests.support.ranks import double_images
from tests.support.training import tiny_batch
from tests.systems.tiny import SYSTEMS, built

CPU = World(0, 1, 0, 1, torch.device("cpu"))
PENALIZED = ("ssa_gan", "df_gan")
MERGED = "system.discriminator_schedule=merged"


def strategy(name: str, *overrides: str, **engine: Any) -> DDPStrategy:
    torch.manual_seed(0)
    return DDPStrategy(built(name, *overrides), CPU, EngineConfig(batch_size=4, **engine))


def step(trained: DDPStrategy, number: int = 0, sample: int | None = None) -> dict[str, Tensor]:
    sample = number if sample is None else sample
    generator = torch.Generator().manual_seed(sample)
    noise = torch.randn(4, trained.system.noise_width, generator=generator)
    return train_step(trained, tiny_batch(start=4 * sample), noise, 4 * number)


def run(trained: DDPStrategy, *numbers: int) -> list[dict[str, Tensor]]:
    return [step(trained, number) for number in numbers]


class Plane(nn.Module):
    """A discriminator whose logit is linear in the image."""

    def __init__(self) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.linspace(-1, 1, 12, dtype=torch.float64))

    def features(self, image: Tensor) -> Tensor:
        return image.flatten(1)

    def logits(self, features: Tensor, sentence: Tensor) -> Tensor:
        return features @ self.slope + sentence.sum(1)


def test_finite_differences_approach_the_squared_gradient() -> None:
    plane, count = Plane(), 20_000
    image, sentence = torch.rand(count, 3, 2, 2).double(), torch.rand(count, 4).double()
    noise = torch.randn(count, 5, generator=torch.Generator().manual_seed(0))
    found = finite_difference_penalty(plane, image, sentence, noise)
    exact = plane.slope.square().sum()
    assert float(found.penalty.detach()) == pytest.approx(float(exact.detach()), rel=0.03)
    assert torch.equal(found.logits, plane.logits(plane.features(image), sentence))
    (gradient,) = torch.autograd.grad(found.penalty, plane.slope)
    torch.testing.assert_close(gradient, 2 * plane.slope.detach(), rtol=0.1, atol=0.05)


def test_noise_is_each_samples_own() -> None:
    keys = torch.randn(6, 5, generator=torch.Generator().manual_seed(0))
    whole = keyed_normal(keys, (3, 16, 15))
    assert torch.equal(keyed_normal(keys[[4, 1]], (3, 16, 15)), whole[[4, 1]])
    assert abs(float(whole.mean())) < 0.05 and abs(float(whole.std()) - 1) < 0.05
    apart = torch.corrcoef(whole.flatten(1)) - torch.eye(6)
    assert float(apart.abs().max()) < 0.2  # 5 standard deviations of 720 numbers


@pytest.mark.parametrize("options", [("ssa_gan",), ("ssa_gan", MERGED), ("df_gan",)])
def test_finite_differences_need_no_second_derivative(options: tuple[str, ...]) -> None:
    trained = strategy(*options, "system.penalty=finite_difference")
    phase = trained.system.phases[-2]  # before the generator's
    context = trained.begin(tiny_batch(), torch.randn(4, 8))
    with Recorder() as forward:
        loss, terms = trained.forward(phase, phase.loss, context)
    assert not forward.asked  # a gradient penalty has one of each convolution here already
    trained.backward(phase, loss)
    assert float(terms["gradient"].value) > 0
    # Real images and their neighbors together; where the phase has them, the fakes apart.
    passes = sum(kernel[1] == 3 for kernel in forward.kernels)
    assert passes == (1 if phase.name == "penalty" else 2)


def test_micro_batches_have_the_same_differences(monkeypatch: pytest.MonkeyPatch) -> None:
    """In float64: a difference of close numbers rounds to 4e-5 with AVX2's float32 kernels."""
    monkeypatch.setattr(one_stage_gan, "scale_images", double_images)
    overrides = ("df_gan", "system.penalty=finite_difference", "system.penalty_epsilon=0.5")
    found = []
    for count in (1, 2):
        trained = strategy(*overrides, accumulate=count)
        trained.system.modules.double()
        noise = torch.randn(
            4, trained.system.noise_width, generator=torch.Generator().manual_seed(0)
        )
        values = train_step(trained, tiny_batch(), noise.double(), 0)
        found.append(values["discriminator/gradient"])
    torch.testing.assert_close(*found, rtol=1e-5, atol=0)


@pytest.mark.parametrize(("name", "options"), [("ssa_gan", ()), ("ssa_gan", (MERGED,))])
def test_a_lazy_penalty_is_left_out_between_and_weighs_more(
    name: str, options: tuple[str, ...]
) -> None:
    always = strategy(name, *options)
    lazy = strategy(name, *options, "system.penalty_every=3")
    flops = [[count_flops(partial(step, s, n, 0)) for n in (0, 1)] for s in (always, lazy)]
    assert flops[0][0] == flops[0][1] == flops[1][0]
    plain = strategy(name, *options, "system.penalty=none")
    assert flops[1][1] == count_flops(lambda: step(plain))
    mean = (flops[1][0] + 2 * flops[1][1]) / 3
    assert mean < 0.87 * flops[0][0]  # the penalty is a quarter of a step: two thirds of it
    (phase,) = [p for p in lazy.system.phases if p.every > 1]
    terms = phase.loss(lazy.begin(tiny_batch(), torch.randn(4, 8)))
    assert terms["gradient"].weight == 3 * 2.0


def test_the_cost_of_a_lazy_step_is_its_mean() -> None:
    captions = Captions(max_tokens=6, vocabulary=20)
    often, lazy, never = (
        count_step(built("ssa_gan", f"system.{option}"), captions)
        for option in ("penalty_every=1", "penalty_every=4", "penalty=none")
    )
    assert lazy == pytest.approx(often / 4 + never * 3 / 4)


@pytest.mark.parametrize("name", PENALIZED)
def test_which_steps_have_it_follows_from_the_images_seen(name: str) -> None:
    whole, before, after = (strategy(name, "system.penalty_every=2") for _ in range(3))
    expected = run(whole, 0, 1, 2, 3)
    run(before, 0)
    after.system.modules.load_state_dict(before.system.modules.state_dict())
    after.write_moments(before.read_moments())
    found = run(after, 1, 2, 3)
    has = [any(term.endswith("/gradient") for term in values) for values in expected]
    assert has == [True, False, True, False]
    for ours, theirs in zip(found, expected[1:], strict=True):
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)


@pytest.mark.parametrize("name", SYSTEMS)
def test_no_product_of_a_bf16_step_runs_in_ieee_float32(name: str, restored_flags: None) -> None:
    counted = products_of(lambda: step(strategy(name, precision="bf16")))
    assert counted.share("ieee") == 0
    assert counted.share("bfloat16", "convolution") == 1


@pytest.mark.parametrize("name", PENALIZED)
@pytest.mark.parametrize(("kind", "share"), [("tf32", "tf32"), ("fp32", "ieee"), ("bf16", "tf32")])
def test_the_penalty_runs_in_what_is_asked_for(
    name: str, kind: str, share: str, restored_flags: None
) -> None:
    asked = strategy(name, f"system.penalty_precision={kind}", precision="bf16")
    counted = products_of(lambda: step(asked))
    found = counted.share(share, "convolution")
    # SSA-GAN's penalty alone, DF-GAN's real images: in both derivatives.
    assert (found == 0) if kind == "bf16" else (0.15 < found < 0.5)
    assert counted.share("ieee", "matrix") == 0
    assert counted.share("bfloat16", "convolution") == pytest.approx(1 - found)
    assert torch.backends.cudnn.allow_tf32 and torch.backends.cuda.matmul.allow_tf32


def test_sixteen_bits_change_the_penalty_by_little(restored_flags: None) -> None:
    def penalties(precision: str) -> Tensor:
        values = run(strategy("ssa_gan", precision=precision), 0, 1)
        return torch.stack([value["penalty/gradient"] for value in values])

    exact, rounded = penalties("fp32"), penalties("bf16")
    assert exact.dtype == rounded.dtype == torch.float32
    assert 0 < float(((rounded - exact) / exact).abs().max()) < 0.1  # a sixth power: six times 2⁻⁸


@pytest.mark.parametrize(
    ("overrides", "key"),
    [
        (("penalty=none", "penalty_every=2"), "penalty_every"),
        (("penalty_weight=0", "penalty_precision=tf32"), "penalty_precision"),
        (("penalty=finite_difference", "penalty_norm=sum"), "penalty_norm"),
        (("penalty_epsilon=0.1",), "penalty_epsilon"),
    ],
)
def test_settings_without_effect_are_refused(overrides: tuple[str, ...], key: str) -> None:
    with pytest.raises(
        ConfigurationError, match=rf"system\.{key} has no effect on system\.penalty"
    ):
        built("ssa_gan", *(f"system.{override}" for override in overrides))
