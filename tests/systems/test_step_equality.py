"""The step that leaves work out gives the losses and weights of the step that does not."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from benchmarks.plain_step import PlainStep
from t2i_hpc.config.engine import EngineConfig
from t2i_hpc.data.batches import Batch
from t2i_hpc.systems import one_stage_gan
from t2i_hpc.systems.one_stage_gan import OneStageGAN
from t2i_hpc.training.ddp import DDPStrategy
from t2i_hpc.training.step import train_step
from t2i_hpc.training.world import World
from tests.support.training import tiny_batch, tiny_config
from tests.systems.tiny import built

CPU = World(0, 1, 0, 1, torch.device("cpu"))
STEPS = 2
# A bias that a batch norm subtracts again has no gradient but rounding noise, which Adam, being
# free of scale, makes as large as any other step.
BEFORE_A_NORM = (
    "conv1.bias",
    "features.bias",
    "blocks.4.conv2.bias",
    "blocks.4.shortcut.bias",
)


def double_system(training: str) -> OneStageGAN:
    """A small system in float64 without a zero among its weights; always the same one."""
    torch.manual_seed(0)
    # Powers of two: weights of the sum of losses are kept in float32.
    config = tiny_config(training, damsm=0.125)
    system = OneStageGAN(config, 20)
    system.modules.double()
    with torch.no_grad():
        for name, parameter in system.modules.named_parameters():
            if not name.startswith("image_encoder.trunk"):
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return system


def double_images(images: Tensor) -> Tensor:
    return images.double() / 127.5 - 1.0


def samples(step: int) -> tuple[Batch, Tensor]:
    """A batch of four, two of one class, and its noise."""
    batch = tiny_batch(start=4 * step)
    batch.classes[3] = batch.classes[1]
    generator = torch.Generator().manual_seed(step)
    return batch, torch.randn(4, 100, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("training", ["frozen", "damsm"])
def test_two_steps_equal_the_plain_steps(training: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(one_stage_gan, "scale_images", double_images)
    ours, plain = double_system(training), double_system(training)
    start = {name: value.clone() for name, value in ours.modules.state_dict().items()}
    strategy, reference = DDPStrategy(ours, CPU), PlainStep(plain)
    for step in range(STEPS):
        batch, noise = samples(step)
        values = train_step(strategy, batch, noise)
        images = double_images(batch.images)
        expected = reference.run(images, batch.tokens, batch.lengths, batch.classes, noise)
        assert set(values) == set(expected)
        for name, value in expected.items():
            assert torch.allclose(values[name], value, rtol=1e-9, atol=0), name
    theirs = plain.modules.state_dict()
    for name, value in ours.modules.state_dict().items():
        if not name.endswith((*BEFORE_A_NORM, "num_batches_tracked")):
            assert torch.allclose(value, theirs[name], rtol=0, atol=1e-9), name
    owned = {parameter for part in ours.trainable.values() for parameter in part.parameters()}
    for name, parameter in ours.modules.named_parameters():
        assert torch.equal(parameter, start[name]) != (parameter in owned), name


@pytest.mark.parametrize("name", ["ssa_gan", "df_gan"])
def test_losses_of_real_and_fake_images_apart_add_up(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in one backward, with the penalty in the same phase."""
    monkeypatch.setattr(one_stage_gan, "scale_images", double_images)
    merged = ("system.discriminator_schedule=merged",) if name == "ssa_gan" else ()
    results = []
    for split in (True, False):
        torch.manual_seed(0)
        system = built(name, *merged)
        system.modules.double()
        config = EngineConfig(batch_size=4, split_losses=split)
        strategy = DDPStrategy(system, CPU, config)
        batch, noise = samples(0)
        values = train_step(strategy, batch, noise[:, : system.noise_width])
        results.append(values | strategy.read_moments())
    apart, together = results
    assert apart.keys() == together.keys()
    for key, value in together.items():
        assert torch.allclose(apart[key], value, rtol=1e-6, atol=1e-12), key
