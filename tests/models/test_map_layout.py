"""Channels-last weights: no convolution of a generator gets a map that it must reorder first."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from t2i_hpc.models import map_layout
from t2i_hpc.models.df_generator import DFGenerator
from t2i_hpc.models.discriminator import MatchingDiscriminator
from t2i_hpc.models.map_layout import as_kernels_like
from t2i_hpc.models.ssa_generator import SSAGenerator

GENERATORS: dict[str, Callable[[], nn.Module]] = {
    "ssa": lambda: SSAGenerator(64, width=4, mask_width=4),
    "ssa of the paper": lambda: SSAGenerator(64, width=4, mask_source="paper", modulation="paper"),
    "df": lambda: DFGenerator(64, width=4),
}


@pytest.mark.parametrize("name", GENERATORS)
def test_the_maps_have_the_layout_of_the_weights_from_the_first_layer_on(name: str) -> None:
    generator = GENERATORS[name]().to(memory_format=torch.channels_last)
    reordered: list[tuple[int, ...]] = []

    def look(module: nn.Module, given: tuple[Tensor, ...]) -> None:
        if not given[0].is_contiguous(memory_format=torch.channels_last):
            reordered.append(tuple(given[0].shape))

    for module in generator.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_pre_hook(look)
    generator(torch.randn(2, 100), torch.randn(2, 256))
    assert not reordered


def test_the_weights_decide_where_no_cpu_computes() -> None:
    maps = torch.empty(2, 8, 4, 4, device="meta")
    plain = nn.Conv2d(8, 3, 3, device="meta")
    last = nn.Conv2d(8, 3, 3, device="meta").to(memory_format=torch.channels_last)
    assert as_kernels_like(maps, plain).is_contiguous()
    assert as_kernels_like(maps, last).is_contiguous(memory_format=torch.channels_last)
    assert as_kernels_like(maps).is_contiguous()


@pytest.mark.parametrize("quick", [True, False])
def test_a_discriminator_is_channels_last_on_cpus_that_are_quick_in_it(
    quick: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(map_layout, "_QUICK_CHANNELS_LAST", quick)
    discriminator = MatchingDiscriminator(128, width=2)
    layouts = []

    def look(module: nn.Module, given: tuple[Tensor, ...]) -> None:
        if given[0].shape[1] > 1 and given[0].shape[-1] > 32:
            layouts.append(given[0].is_contiguous())

    for module in discriminator.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_pre_hook(look)
    discriminator(torch.randn(2, 3, 128, 128), torch.randn(2, 256))
    assert layouts and set(layouts) == {not quick}
