"""Parts by name: any together, the papers' systems among them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from t2i_hpc.common.errors import ConfigurationError
from t2i_hpc.config.compose import compose_config, group_choices
from t2i_hpc.config.fields import identity
from t2i_hpc.config.tasks import TrainConfig
from t2i_hpc.models.augmentation import KINDS, Augmentation, augment
from t2i_hpc.systems import outline_system
from t2i_hpc.training.ddp import DDPStrategy
from t2i_hpc.training.step import train_step
from t2i_hpc.training.world import World
from tests.support.training import tiny_batch
from tests.systems.tiny import NOT_AUGMENTED, SYSTEMS, built, configured

CPU = World(0, 1, 0, 1, torch.device("cpu"))
ANY = "one_stage_gan"
PAPERS = {
    "ssa_gan": ("system.generator=ssa", *SYSTEMS["ssa_gan"][1:]),
    "df_gan": ("system.generator=df", "system.discriminator=df", "system.mismatch=roll"),
}
PLAIN = (*NOT_AUGMENTED, "system.loss=hinge", "system.penalty=magp", "system.penalty_weight=2.0")
NEW = ("generator", "discriminator", "loss", "truncation")


def stepped(name: str, *overrides: str) -> tuple[Any, dict[str, Tensor]]:
    torch.manual_seed(0)
    system = built(name, *overrides)
    noise = torch.randn(4, 8, generator=torch.Generator().manual_seed(1))
    return system, train_step(DDPStrategy(system, CPU), tiny_batch(), noise)


@pytest.mark.parametrize("name", PAPERS)
def test_a_papers_parts_by_name_are_its_system(name: str) -> None:
    schedule = "two_steps" if name == "ssa_gan" else "merged"
    merged = f"system.discriminator_schedule={schedule}"
    ours, losses = stepped(ANY, *PAPERS[name], *PLAIN, merged)
    paper, expected = stepped(name)
    assert losses.keys() == expected.keys()
    state = ours.modules.state_dict()
    assert not [k for k, v in paper.modules.state_dict().items() if not v.equal(state[k])]


@pytest.mark.parametrize("name", PAPERS)
def test_runs_from_before_the_parts_had_names_keep_their_identity(name: str) -> None:
    kept = set(identity(configured(name).system))
    later = {"discriminator_schedule", "penalty_norm"} if name == "df_gan" else set()
    assert not kept & {*NEW[:3], *later}
    assert ("truncation" in kept) == (name == "df_gan")


@pytest.mark.parametrize("name", ["df_gan", "attn_gan"])
def test_a_size_sets_widths_batch_and_rates_of_any_gan(name: str) -> None:
    found = []
    for size in group_choices("size"):
        words = [f"system={name}", f"size={size}", "system.noise_width=7"]
        config: Any = compose_config("train", words, TrainConfig)
        system = config.system
        assert system.generator_width == system.discriminator_width
        found.append((size, system.generator_width, config.engine.batch_size))
        rate = outline(system).optimizers["generator"].learning_rate
        assert rate == system.optimizer.scale * system.optimizer.generator_learning_rate
    assert found == [("base", 32, 32), ("large", 64, 96), ("small", 16, 24)]
    experiment: Any = compose_config("train", ["experiment=demo", "size=base"], TrainConfig)
    assert (experiment.system.generator_width, experiment.engine.batch_size) == (32, 32)


def outline(config: Any) -> Any:
    if hasattr(config, "damsm"):
        config.damsm.weight = 0.0
    return outline_system(config, 20)


def test_r1_and_r2_are_the_squares_of_gradients_by_the_image() -> None:
    torch.manual_seed(0)
    system = built(ANY, *NOT_AUGMENTED)
    with torch.no_grad():
        for parameter in system.modules.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    step = system.begin(tiny_batch(), torch.randn(4, 8))
    losses = system.merged_losses(step)
    for term, image in (("gradient", step.real), ("gradient_fake", step.fake)):
        leaf = image.detach().requires_grad_()
        logits = system.discriminator(leaf, step.sentence)
        (gradient,) = torch.autograd.grad(logits.sum(), leaf)
        expected = gradient.square().sum((1, 2, 3)).mean().item()
        assert losses[term].value.item() == pytest.approx(expected, rel=1e-4)
        assert losses[term].weight == pytest.approx(0.1)
    matching = system.discriminator(step.real, step.sentence)
    fake = system.discriminator(step.fake, step.sentence)
    assert losses["fake"].value.item() == pytest.approx(F.softplus(fake - matching).mean().item())
    adversarial = system.generator_losses(step)["adversarial"].value
    assert adversarial.item() == pytest.approx(F.softplus(matching - fake).mean().item())


def test_all_that_the_discriminator_sees_is_augmented_alike() -> None:
    system = built(ANY, "system.loss=hinge", "system.penalty=none", "system.penalty_weight=2.0")
    step = system.begin(tiny_batch(), torch.randn(4, 8))
    real, fake = (
        augment(images.detach(), step.noise, KINDS, 0.5) for images in (step.real, step.fake)
    )
    assert not real.equal(step.real)
    logits = system.discriminator(fake, step.sentence)
    losses = system.generator_losses(step)
    assert losses["adversarial"].value.item() == pytest.approx(-logits.mean().item(), rel=1e-5)
    matching = system.discriminator(real, step.sentence)
    losses = system.discriminator_losses(step)
    expected = F.relu(1 - matching).mean().item()
    assert losses["real"].value.item() == pytest.approx(expected, rel=1e-5)
    assert losses["real_sign"].value.item() == pytest.approx(matching.sign().mean().item())
    assert losses["augmented"].weight == losses["real_sign"].weight == 0


def test_the_probability_follows_the_sign_of_real_logits() -> None:
    made = Augmentation(KINDS, 0.5, target=0.6, images=40)
    assert made.follow(torch.tensor([3.0, 2.0, -1.0, 1.0])) == 0.5
    assert made.probability == 0.5  # all phases of a step have one
    made.begin_step()
    assert made.probability == pytest.approx(0.4)
    for _ in range(9):
        made.follow(torch.ones(4))
        made.begin_step()
    assert made.probability == 1
    assert {*made.state_dict()} == {"probability", "change"}
    fixed = Augmentation(["flip"], 0.3)
    fixed.follow(torch.ones(4))
    fixed.begin_step()
    assert not fixed.adapts
    assert float(fixed.probability) == pytest.approx(0.3)
    assert "augmentation" in built(ANY).modules
    assert "augmentation" not in built(ANY, *NOT_AUGMENTED).modules


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        (("system.block=affine",), "system.block belongs to system.generator=ssa"),
        (NOT_AUGMENTED[:3], "system.augmentation_images has no effect without system.augmentation"),
        (("system.masks=3",), "system.masks belongs to system.generator=ssa"),
        (("system.penalty_power=4",), "system.penalty_power has no effect on system.penalty=r1r2"),
    ],
)
def test_settings_of_parts_that_are_not_there_are_refused(
    overrides: tuple[str, ...], reason: str
) -> None:
    with pytest.raises(ConfigurationError, match=reason):
        built(ANY, *overrides)
