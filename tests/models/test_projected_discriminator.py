"""The projected discriminator: what is frozen, what a row depends on, what the sentence does."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from t2i_hpc.common.errors import ConfigurationError
from t2i_hpc.config.engine import EngineConfig
from t2i_hpc.models.projected_discriminator import ProjectedDiscriminator
from t2i_hpc.training.cost import count_flops
from t2i_hpc.training.ddp import DDPStrategy
from t2i_hpc.training.step import train_step
from t2i_hpc.training.world import World
from tests.support.training import tiny_batch
from tests.systems.tiny import built

CPU = World(0, 1, 0, 1, torch.device("cpu"))


@pytest.fixture(scope="module")
def network() -> ProjectedDiscriminator:
    torch.manual_seed(0)
    return ProjectedDiscriminator(64, 4, 6, 64).eval()


def pairs(count: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(count, 3, 64, 64, generator=generator) * 2 - 1
    return images, torch.randn(count, 6, generator=generator)


def test_four_heads_make_many_logits_that_depend_on_their_own_pair(
    network: ProjectedDiscriminator,
) -> None:
    images, sentences = pairs(3)
    logits = network(images, sentences)
    assert logits.shape == (3, 25 + 25 + 1 + 1)  # maps of 16, 8, 4 and 2 px
    torch.testing.assert_close(network(images[1:2], sentences[1:2]), logits[1:2])
    other = network(images, sentences.roll(1, 0))
    assert not (other - logits).abs().amin(1).lt(1e-6).any()  # each head reads the sentence


def test_larger_images_are_seen_at_the_same_side(network: ProjectedDiscriminator) -> None:
    images, sentences = pairs(1)
    large = images.repeat_interleave(2, 2).repeat_interleave(2, 3)
    torch.testing.assert_close(network(large, sentences), network(images, sentences))


def test_a_step_moves_the_heads_and_the_projection_is_a_frozen_network_of_its_own() -> None:
    torch.manual_seed(0)
    system = built("projected")
    before = {name: value.clone() for name, value in system.modules.state_dict().items()}
    values = train_step(
        DDPStrategy(system, CPU, EngineConfig(batch_size=4)), tiny_batch(), torch.randn(4, 8)
    )
    state = system.modules.state_dict()
    moved = {name.split(".")[0] for name, value in before.items() if not value.equal(state[name])}
    assert moved == {"generator", "generator_ema", "discriminator", "frechet"}  # moments
    assert not [name for name in state if name.startswith("discriminator.frozen")]
    assert "projection.across_scales.0.weight" in state
    assert not any("penalty" in name for name in values)
    torch.manual_seed(0)
    again = built("projected").modules.state_dict()
    assert not [n for n, v in again.items() if n.startswith("projection") and not v.equal(state[n])]


def test_the_frozen_network_costs_as_much_as_the_square_of_its_side() -> None:
    """In GFLOP an image at 16 units: 0.85 at 224 px, 0.27 at 128."""
    costs = []
    for side in (224, 128):
        discriminator = ProjectedDiscriminator(64, 16, 8, side)
        images, sentences = torch.zeros(1, 3, 64, 64), torch.zeros(1, 8)
        costs.append(count_flops(lambda: discriminator(images, sentences)) / 1e9)  # noqa: B023
    assert costs == pytest.approx([0.854, 0.271], rel=0.01)


@pytest.mark.parametrize(
    ("name", "override", "reason"),
    [
        ("projected", "system.penalty=r1", r"take system\.penalty=none with system\.discriminator"),
        ("df_gan", "system.projection_side=96", "belongs to system.discriminator=projected"),
    ],
)
def test_what_does_not_fit_is_refused(name: str, override: str, reason: str) -> None:
    with pytest.raises(ConfigurationError, match=reason):
        built(name, override)
