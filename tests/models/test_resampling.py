"""Enlarged and halved maps: torch's values to the bit, and no map is reordered on the way."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from t2i_hpc.models.resampling import enlarge, enlarge_nearest, halve

LAYOUTS = {"plain": torch.contiguous_format, "channels-last": torch.channels_last}
SHAPES = [(2, 8, 4, 4), (2, 16, 32, 32), (1, 3, 40, 24), (2, 1, 8, 8), (1, 4, 1, 1)]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("factor", [2, 3])
def test_enlarged_maps_and_their_gradients_are_torchs(
    shape: tuple[int, ...], layout: str, factor: int
) -> None:
    maps = torch.randn(shape).to(memory_format=LAYOUTS[layout]).requires_grad_()
    ours, theirs = enlarge_nearest(maps, factor), F.interpolate(maps, scale_factor=factor)
    gradient = torch.randn_like(theirs)
    assert torch.equal(ours, theirs)
    (by_ours,) = torch.autograd.grad(ours, maps, gradient)
    (by_theirs,) = torch.autograd.grad(theirs, maps, gradient)
    assert torch.equal(by_ours, by_theirs)


def test_bilinear_maps_have_aligned_corners_and_one_time_is_the_map_itself() -> None:
    maps = torch.arange(4.0).view(1, 1, 2, 2)
    assert enlarge(maps, 1, "nearest") is maps
    assert torch.equal(enlarge(maps, 2, "bilinear")[0, 0, 0], torch.tensor([0, 1 / 3, 2 / 3, 1]))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [(2, 8, 4, 4), (2, 16, 32, 32), (1, 3, 40, 24)])
def test_halved_maps_are_means(shape: tuple[int, ...], layout: str) -> None:
    maps = torch.randn(shape).to(memory_format=LAYOUTS[layout])
    torch.testing.assert_close(halve(maps), F.avg_pool2d(maps, 2))


@pytest.mark.parametrize("side", [4, 16, 32])
def test_plain_maps_are_written_once(side: int) -> None:
    maps = torch.randn(2, 64, side, side, requires_grad=True)
    assert copies(lambda: enlarge_nearest(maps, 2)) == 1
    assert copies(lambda: F.interpolate(maps, scale_factor=2)) > 1  # what this is for


def copies(function: Callable[[], Tensor]) -> int:
    """Return how many times `function` copies a tensor, inside operators too."""
    with profile(activities=[ProfilerActivity.CPU]) as recorded:
        function()
    return sum(event.name == "aten::copy_" for event in recorded.events() or [])
