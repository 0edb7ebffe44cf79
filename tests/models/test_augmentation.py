"""Augmentation: a function of each noise row, the same for all images of it, differentiable."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from t2i_hpc.models.augmentation import KINDS, augment, uniforms


def images(count: int = 6, side: int = 16, dtype: torch.dtype = torch.float64) -> Tensor:
    torch.manual_seed(0)
    return torch.rand(count, 3, side, side, dtype=dtype) * 2 - 1


def noise(count: int = 6) -> Tensor:
    return torch.randn(count, 9, generator=torch.Generator().manual_seed(1))


def test_the_numbers_are_uniform_and_independent() -> None:
    numbers = uniforms(noise(4000), 8)
    assert (numbers >= 0).all()
    assert (numbers < 1).all()
    assert torch.allclose(numbers.mean(0), torch.full((8,), 0.5).double(), atol=0.03)
    assert torch.allclose(numbers.var(0), torch.full((8,), 1 / 12).double(), atol=0.006)
    both = torch.cat([numbers, noise(4000).double()], 1)
    assert (torch.corrcoef(both.T) - torch.eye(17)).abs().max() < 0.07


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_decides_whatever_the_batch_and_the_copy(kind: str) -> None:
    whole = augment(images(), noise(), [kind])
    parts = [augment(images()[cut], noise()[cut], [kind]) for cut in (slice(0, 2), slice(2, 6))]
    assert torch.equal(torch.cat(parts), whole)
    assert torch.equal(augment(images(), noise().double(), [kind]), whole)  # a run in float64
    assert not torch.equal(whole, images())
    assert torch.equal(augment(images(), noise(), [kind], 0.0), images())
    assert torch.equal(augment(images(), noise(), [kind], torch.tensor(1.0)), whole)


def test_a_probability_is_the_share_of_images_that_change() -> None:
    many = torch.ones(1000, 3, 4, 4)
    changed = augment(many, noise(1000), ["color"], 0.3)
    assert 0.25 < float((changed != many).flatten(1).any(1).float().mean()) < 0.35
    assert torch.equal(augment(many, noise(1000), []), many)


def test_translation_moves_and_leaves_zeros() -> None:
    whole = torch.arange(1.0, 257).view(1, 1, 16, 16).expand(400, 3, 16, 16)
    moved = augment(whole, noise(400), ["translation"])
    place = (moved == 120).nonzero()[::3]  # of the pixel at row 7, column 7
    assert {*(place[:, 2] - 7).tolist()} == {*(place[:, 3] - 7).tolist()} == {-2, -1, 0, 1, 2}
    assert (moved == 0).any()


def test_cutout_leaves_a_square_of_zeros_anywhere() -> None:
    cut = augment(torch.ones(400, 3, 16, 16), noise(400), ["cutout"])
    areas = (cut == 0)[:, 0].flatten(1).sum(1)
    assert int(areas.max()) == 64
    assert int(areas.min()) <= 20  # at a corner
    assert (cut == 0)[:, 0].any(0).all()


def test_flip_mirrors_half_and_color_moves_brightness_saturation_and_contrast() -> None:
    mirrored = augment(images(1000, 4), noise(1000), ["flip"])
    same = (mirrored == images(1000, 4)).flatten(1).all(1)
    assert torch.equal(mirrored[~same], images(1000, 4).flip(3)[~same])
    assert 0.45 < float(same.float().mean()) < 0.55
    colored = augment(images(1000, 4), noise(1000), ["color"])
    change = (colored - images(1000, 4)).mean((1, 2, 3))
    assert change.abs().max() < 0.5 + 1e-9
    assert change.std() > 0.2


def test_gradients_are_exact_twice() -> None:
    few, rows = images(2, 4).requires_grad_(), noise(2)

    def changed(inputs: Tensor) -> Tensor:
        return augment(inputs, rows, KINDS).pow(3)

    assert torch.autograd.gradcheck(changed, few)
    assert torch.autograd.gradgradcheck(changed, few)
