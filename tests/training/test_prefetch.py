"""Batches come to the device in their order, with their values."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from t2i_hpc.data.batches import Batch
from t2i_hpc.training.loop import on_device

# On a CPU there is nothing to move.
pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
DEVICE = torch.device("cuda")


def make_pair(number: int) -> tuple[Batch, torch.Tensor]:
    return make(number), torch.full((2, 3), float(number))


def make(number: int) -> Batch:
    images = torch.full((2, 4, 4, 3), number, dtype=torch.uint8).pin_memory()
    return Batch(
        images=images.permute(0, 3, 1, 2),
        tokens=torch.full((2, 5), number),
        lengths=torch.tensor([1, 2]),
        classes=torch.tensor([number, 0]),
        positions=torch.arange(2) + 2 * number,
        captions=(f"number {number}", ""),
        keys=("a", "b"),
    )


def test_batches_arrive_whole_and_in_order() -> None:
    found = list(on_device((make_pair(number) for number in range(20)), DEVICE))
    for number, (batch, latent) in enumerate(found[:19]):
        assert torch.equal(latent.cpu(), torch.full((2, 3), float(number)))
        assert batch.images.device.type == batch.classes.device.type == "cuda"
        assert batch.positions.device.type == batch.lengths.device.type == "cpu"
        expected = make(number)
        for name in ("images", "tokens", "lengths", "classes", "positions"):
            assert torch.equal(getattr(batch, name).cpu(), getattr(expected, name)), name
        assert (batch.captions, batch.keys) == (expected.captions, expected.keys)


def test_nothing_is_read_long_before_it_is_wanted() -> None:
    asked: list[int] = []

    def batches() -> Iterator[tuple[Batch, torch.Tensor]]:
        for number in range(20):
            asked.append(number)
            yield make_pair(number)

    arriving = on_device(batches(), DEVICE)
    next(arriving)
    assert asked == [0, 1]
