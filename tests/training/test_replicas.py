"""Fingerprints see every change of one bit, and every exchange of two numbers."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from t2i_hpc.training.checkpoints import replicas
from t2i_hpc.training.checkpoints.replicas import fingerprints


def of(value: Tensor) -> int:
    return int(fingerprints([value])[0])


def numbers(count: int = 1000) -> Tensor:
    return torch.randn(count, generator=torch.Generator().manual_seed(0))


@given(place=st.integers(0, 999), bit=st.integers(0, 31))
@settings(max_examples=200, deadline=None)
def test_any_one_bit_is_seen(place: int, bit: int) -> None:
    value = numbers()
    before = of(value)
    value.view(torch.int32)[place] ^= torch.tensor(1 << bit).to(torch.int32)
    assert of(value) != before


@given(first=st.integers(0, 999), second=st.integers(0, 999))
@settings(max_examples=200, deadline=None)
def test_an_exchange_is_seen(first: int, second: int) -> None:
    value = numbers()
    before = of(value)
    value[[first, second]] = value[[second, first]]
    assert (of(value) != before) == (first != second)


def test_the_sign_of_a_zero_and_the_next_number_are_seen() -> None:
    assert of(torch.tensor([0.0, 1.0])) != of(torch.tensor([-0.0, 1.0]))
    one = torch.tensor([1.0, 2.0])
    assert of(one) != of(torch.nextafter(one, torch.tensor(9.0)))
    assert of(torch.tensor([0.0, -0.0])) != of(torch.tensor([-0.0, 0.0]))
    flipped = numbers()
    flipped[[3, 700]] *= -1
    assert of(flipped) != of(numbers())


@pytest.mark.parametrize(
    "kind", [torch.float64, torch.bfloat16, torch.float16, torch.int64, torch.bool, torch.uint8]
)
def test_every_type_has_one(kind: torch.dtype) -> None:
    value = (numbers() > 0).to(kind)
    other = value.clone()
    other[17] = 1 - value[17].int()
    assert of(value) == of(value.clone())
    assert of(value) != of(other)


def test_shapes_without_numbers_or_order() -> None:
    assert fingerprints([]).shape == (0,)
    assert of(torch.empty(0)) == 0
    assert of(torch.tensor(3)) != of(torch.tensor(4))
    image = numbers(120).reshape(2, 3, 4, 5)
    assert of(image) == of(image.to(memory_format=torch.channels_last))
    assert of(image) != of(image.transpose(2, 3))


def test_long_tensors_go_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replicas, "_AT_ONCE", 64)
    value = numbers()
    before = of(value)
    for first, second in ((0, 64), (10, 970), (63, 64)):  # the same place of two parts, and not
        exchanged = value.clone()
        exchanged[[first, second]] = value[[second, first]]
        assert of(exchanged) != before
    assert len({of(value), of(value.roll(64)), of(value.roll(-64))}) == 3
