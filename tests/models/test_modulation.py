"""Modulation in few passes is what it is in single operations."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from t2i_hpc.models.modulation import modulate


def plain(features: Tensor, gamma: Tensor, beta: Tensor, mask: Tensor) -> Tensor:
    return features * (1 + mask * gamma) + mask * beta


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_values_and_gradients_are_those_of_single_operations(layout: torch.memory_format) -> None:
    torch.manual_seed(0)
    shapes = [(2, 5, 4, 6), (2, 5, 1, 1), (2, 5, 1, 1), (2, 1, 4, 6)]
    given = [torch.randn(shape, dtype=torch.float64) for shape in shapes]
    given[0] = given[0].contiguous(memory_format=layout)
    weights = torch.randn(shapes[0], dtype=torch.float64)
    found = []
    for function in (plain, modulate):
        inputs = [value.clone().requires_grad_() for value in given]
        result = function(*inputs)
        assert result.is_contiguous(memory_format=layout)
        found.append([result, *torch.autograd.grad((result * weights).sum(), inputs)])
    for theirs, ours in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-13)


def test_nothing_is_kept_but_the_inputs() -> None:
    kept: list[Tensor] = []
    inputs = [torch.randn(2, 5, 4, 4), *torch.randn(2, 2, 5, 1, 1), torch.rand(2, 1, 4, 4)]

    def keep(value: Tensor) -> Tensor:
        kept.append(value)
        return value

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
        modulate(*(value.requires_grad_() for value in inputs))
    assert {value.data_ptr() for value in kept} == {value.data_ptr() for value in inputs}


def test_the_maps_type_decides_under_autocast() -> None:
    features, mask = torch.randn(2, 5, 4, 4).bfloat16(), torch.rand(2, 1, 4, 4, requires_grad=True)
    result = modulate(features, torch.randn(2, 5, 1, 1), torch.randn(2, 5, 1, 1), mask)
    assert result.dtype == torch.bfloat16
    result.float().sum().backward()
    assert mask.grad is not None and mask.grad.dtype == torch.float32
