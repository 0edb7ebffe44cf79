"""Real moments that a training by the Fréchet distance aims at: the same by any number of ranks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from t2i_hpc.common.errors import ConfigurationError
from t2i_hpc.data.batches import Batch
from t2i_hpc.data.sampler import RankSlice
from t2i_hpc.training import real_moments
from t2i_hpc.training.real_moments import measure_real_moments
from t2i_hpc.training.world import World
from tests.support.training import tiny_batch
from tests.systems.tiny import built

Found = tuple[int, Tensor, Tensor]


class Moments(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.ones(3)
        self.found: list[Found] = []

    def set_real(self, *found: Any) -> None:
        self.found.append(found)


class Term:
    real_images = 1000
    moments = Moments()

    def features(self, images: Tensor) -> Tensor:
        return images.mean((2, 3))


class System:
    frechet = Term()


class Batches:
    """Images of a color that their positions say."""

    def __init__(self, rank: int, world: int) -> None:
        self.slice = RankSlice(4, rank, world, 2)

    def batches(self, start: int) -> Iterator[Batch]:
        for number in range(5):
            positions = torch.tensor(self.slice.positions(start, number))
            colors = positions[:, None] * torch.tensor([3, 5, 7]) % 251
            images = colors.to(torch.uint8)[:, :, None, None].expand(-1, -1, 2, 2)
            yield replace(tiny_batch(), images=images, positions=positions)


def measured(rank: int, world: int) -> Found:
    system: Any = System()
    loader: Any = Batches(rank, world)
    place = World(rank, world, rank, world, torch.device("cpu"))
    said: list[str] = []
    measure_real_moments(system, loader, 10, world=place, precision="fp32", say=said.append)
    assert "10 training images" in said[-1]
    return System.frechet.moments.found.pop()


def test_each_sample_of_an_epoch_counts_once_on_any_number_of_ranks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(real_moments, "all_reduce", lambda value: None)
    count, sums, products = measured(0, 1)
    features = torch.arange(10)[:, None] * torch.tensor([3, 5, 7]) / 127.5 - 1
    torch.testing.assert_close(sums, features.double().sum(0))
    assert count == 10
    for which, whole in ((1, sums), (2, products)):
        parts: list[Any] = [measured(rank, 2)[which] for rank in range(2)]
        torch.testing.assert_close(parts[0] + parts[1], whole, rtol=1e-12, atol=1e-12)


def test_one_forward_serves_the_discriminator_and_the_distance() -> None:
    """The same numbers as those of a forward each; and the distance waits for its images."""
    system = built("projected", "system.fd_from_images=8")
    term = system.frechet
    step = system.begin(tiny_batch(), torch.randn(4, 8))
    term.moments.second.mul_(2)
    system.begin_step(8)
    images = step.fake.detach().requires_grad_()
    step, found = replace(step, fake=images), []
    system.modules.eval()  # spectral norms would move with each forward
    assert term.shared
    for shared in (True, False):
        term.shared = shared
        losses = system.generator_losses(step)
        value = losses["adversarial"].value + losses["frechet"].value
        found.append([value, *torch.autograd.grad(value, images)])
    (value, gradient), (other, same) = found
    assert value.item() == pytest.approx(other.item(), rel=1e-4)
    assert 0 < (gradient - same).norm() < 1e-3 * gradient.norm()
    system.begin_step(4)
    assert {*system.generator_losses(step)} == {"adversarial"}


def test_other_discriminators_bring_the_frozen_network_and_it_needs_its_weight() -> None:
    system = built("df_gan", "system.fd_weight=1", "system.fd_side=64")
    assert {"frechet", "frechet_network"} < {*system.modules}
    system.begin_step(0)
    losses = system.generator_losses(system.begin(tiny_batch(), torch.randn(4, 8)))
    assert losses["frechet"].value.requires_grad
    assert losses["frechet"].weight == 1
    with pytest.raises(ConfigurationError, match=r"without system\.fd_weight"):
        built("df_gan", "system.fd_side=64")
