"""SSA-GAN's options: who gets gradients from which phase, what changes, what is refused."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping

import pytest
import torch

from t2i_hpc.common.errors import ConfigurationError
from t2i_hpc.config.fields import check
from t2i_hpc.models.df_generator import EarlyDFGenerator
from t2i_hpc.systems import encoders
from t2i_hpc.systems.base import Phase, total
from t2i_hpc.systems.one_stage_gan import OneStageGAN
from t2i_hpc.training.ddp import DDPStrategy
from t2i_hpc.training.step import train_step
from t2i_hpc.training.world import World
from tests.support.training import tiny_batch, tiny_config

CPU = World(0, 1, 0, 1, torch.device("cpu"))
# Without gradient by nature: the penalty differentiates the image's gradient, into which the
# biases of convolutions do not enter.
NO_PENALTY = {"from_rgb.bias"} | {f"blocks.{i}.shortcut.bias" for i in range(4)}
# Heads that a choice of DAMSM's terms does not ask.
NO_HEAD = {"words": {"code.weight", "code.bias"}, "sentence": {"regions.weight"}}
OPTIONS: list[dict[str, object]] = [
    {},
    {"text_encoder.training": "damsm"},
    {"text_encoder.training": "joint"},
    {"text_encoder.training": "joint", "discriminator_schedule": "merged"},
    {"text_encoder.training": "damsm", "damsm.terms": "words"},
    {"text_encoder.training": "damsm", "damsm.terms": "sentence"},
    {"text_encoder.training": "joint", "damsm.root": True, "damsm.chunk": 2},
    {"discriminator_schedule": "merged"},
    {"discriminator_schedule": "merged", "penalty_norm": "sum"},
    {"penalty_norm": "sum"},
    {"penalty_weight": 0.0},
    {"modulation": "paper", "mask_source": "paper"},
    {"mismatch": "roll"},
    {"masks": 2},
    {"masks": 0},
    {"block": "affine"},
    {"damsm.weight": 0.0},
    {"image_encoder.align_corners": True},
]


def option_system(options: dict[str, object]) -> OneStageGAN:
    """The tiny system with dotted options, none of its weights zero."""
    config = tiny_config(damsm=0.1)
    for key, value in options.items():
        *sections, name = key.split(".")
        setattr(functools.reduce(getattr, sections, config), name, value)
    check(config)
    return perturbed(OneStageGAN(config, 20))


def perturbed(system: OneStageGAN) -> OneStageGAN:
    with torch.no_grad():
        for name, parameter in system.modules.named_parameters():
            if not name.startswith("image_encoder.trunk"):
                parameter.add_(torch.randn_like(parameter), alpha=0.05)
    return system


def touched(parameters: Iterable[tuple[str, torch.nn.Parameter]]) -> set[str]:
    return {name for name, p in parameters if p.grad is not None and bool((p.grad != 0).any())}


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_each_phase_reaches_its_own_parts_and_nothing_else(options: dict[str, object]) -> None:
    torch.manual_seed(0)
    system = option_system(options)
    terms = str(options.get("damsm.terms", "both"))
    noise = torch.randn(4, system.noise_width)
    for phase in system.phases:
        context = system.begin(tiny_batch(), noise)
        system.modules.zero_grad(set_to_none=True)
        total(phase.loss(context)).backward()
        owned = {id(p) for name in phase.updates for p in system.trainable[name].parameters()}
        for name, parameter in system.modules.named_parameters():
            if id(parameter) not in owned:
                assert parameter.grad is None, f"{phase.name} reaches {name}"
        for part in phase.updates:
            named = list(system.trainable[part].named_parameters())
            missing = {name for name, _ in named} - touched(named)
            allowed = NO_PENALTY if phase.name == "penalty" else set()
            allowed = NO_HEAD.get(terms, set()) if part == "image_heads" else allowed
            assert missing <= allowed, f"{phase.name} leaves out {missing - allowed}"


def test_a_merged_schedule_is_the_sum_of_both_phases() -> None:
    """The same losses and the same gradient at the same weights, in one phase."""
    sums = []
    for schedule in ("two_steps", "merged"):
        torch.manual_seed(0)
        system = option_system({"discriminator_schedule": schedule, "damsm.weight": 0.0})
        noise = torch.randn(4, 100, generator=torch.Generator().manual_seed(1))
        context = system.begin(tiny_batch(), noise)
        phases = [phase for phase in system.phases if phase.updates == ("discriminator",)]
        assert len(phases) == (2 if schedule == "two_steps" else 1)
        loss = torch.stack([total(phase.loss(context)) for phase in phases]).sum()
        gradients = torch.autograd.grad(loss, list(system.discriminator.parameters()))
        sums.append((loss.detach(), gradients))
    (loss, gradients), (merged_loss, merged) = sums
    assert torch.allclose(loss, merged_loss, rtol=1e-5)
    for plain, shared in zip(gradients, merged, strict=True):
        assert torch.allclose(plain, shared, rtol=1e-3, atol=1e-5 * float(plain.abs().max()))


def test_the_discriminator_steps_once_when_merged() -> None:
    system = option_system({"discriminator_schedule": "merged", "damsm.weight": 0.0})
    strategy = DDPStrategy(system, CPU)
    values = train_step(strategy, tiny_batch(), torch.randn(4, 100))
    assert "discriminator/gradient" in values
    steps = {int(state["step"]) for state in strategy.optimizers["discriminator"].state.values()}
    assert steps == {1}


def length(part: torch.nn.Module) -> float:
    """Norm of a part's whole gradient."""
    return float(
        torch.cat([p.grad.flatten() for p in part.parameters() if p.grad is not None]).norm()
    )


@pytest.mark.parametrize("training", ["damsm", "joint"])
def test_the_text_encoders_gradient_is_clipped_and_the_heads_are_not(
    training: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the optimizers get it: a phase later it is gone."""
    norms: dict[float | None, dict[str, float]] = {}
    for clip in (None, 1e-3):
        torch.manual_seed(0)
        system = option_system({"text_encoder.training": training, "text_encoder.clip": clip})
        strategy, found = DDPStrategy(system, CPU), norms.setdefault(clip, {})
        update = strategy.optimizer_step

        def measured(
            phase: Phase,
            found: dict[str, float] = found,
            modules: Mapping[str, torch.nn.Module] = system.trainable,
            update: Callable[[Phase], None] = update,
        ) -> None:
            found |= {name: length(modules[name]) for name in phase.updates}
            update(phase)

        monkeypatch.setattr(strategy, "optimizer_step", measured)
        noise = torch.randn(4, 100, generator=torch.Generator().manual_seed(1))
        train_step(strategy, tiny_batch(), noise)
    assert norms[None]["text_encoder"] > 2e-3
    assert norms[1e-3]["text_encoder"] == pytest.approx(1e-3, rel=1e-3)
    assert norms[1e-3]["image_heads"] == pytest.approx(norms[None]["image_heads"], rel=1e-3)


def test_batch_statistics_move_while_fine_tuning(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the real images first, then by the fake ones."""
    monkeypatch.setattr(encoders, "load_weights", lambda *_: None)
    system = option_system(
        {
            "text_encoder.training": "damsm",
            "image_encoder.name": "inception_v3",
            "image_encoder.weights": "given",
            "image_encoder.batch_statistics": True,
        }
    )
    state = system.modules["image_encoder"].state_dict()
    strategy = DDPStrategy(system, CPU)
    train_step(strategy, tiny_batch(), torch.randn(4, 100))
    assert int(state["trunk.early.0.bn.num_batches_tracked"]) == 2


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"text_encoder.clip": 1.0}, r"system\.text_encoder\.clip has no effect"),
        ({"image_encoder.batch_statistics": True}, r"batch_statistics has no effect"),
        (
            {"image_encoder.batch_statistics": True, "text_encoder.training": "damsm"},
            "efficientnet_lite0 has no batch norms",
        ),
        ({"block": "affine", "masks": 2}, r"system\.masks belongs to system\.block=ssacn"),
        ({"block": "affine", "blocks": 3}, r"system\.blocks belongs"),
        ({"block": "affine", "modulation": "paper"}, r"system\.modulation belongs"),
        ({"block": "affine", "mask_source": "paper"}, r"system\.mask_source belongs"),
        ({"penalty_norm": "max"}, r"penalty_norm=max is not offered"),
        ({"discriminator_schedule": "merge"}, "did you mean 'merged'"),
        ({"damsm.terms": "word"}, "did you mean 'words'"),
        ({"damsm.chunk": 0}, r"damsm\.chunk=0 is too small"),
    ],
    ids=str,
)
def test_options_that_do_not_fit_are_refused(options: dict[str, object], sentence: str) -> None:
    with pytest.raises(ConfigurationError, match=sentence) as caught:
        option_system(options)
    assert "\n" not in str(caught.value)


def test_without_ssacn_the_generator_is_the_first_df_gans() -> None:
    assert isinstance(option_system({"block": "affine"}).generator, EarlyDFGenerator)
