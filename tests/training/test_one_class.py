"""A training by DAMSM on images of one class is told that there is nothing to learn."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch

from t2i_hpc.data.batches import Batch
from t2i_hpc.training.callbacks.retrieval import warning_of_one_class
from t2i_hpc.training.world import World
from tests.support.ranks import run_ranks
from tests.support.toys import toy_batch

CPU = World(0, 1, 0, 1, torch.device("cpu"))


def said(world: World, *classes: int) -> list[str]:
    """Return what is said of two batches of these classes on this rank."""
    lines: list[str] = []
    closed: list[bool] = []

    def batches(images_seen: int) -> Iterator[Batch]:
        try:
            for first in range(images_seen, images_seen + 8, 4):
                batch, _ = toy_batch(len(classes), first)
                yield replace(batch, classes=torch.tensor(classes))
        finally:
            closed.append(True)

    found = warning_of_one_class(batches, world, lines.append)(4)
    assert int(next(iter(found)).positions[0]) == 4
    assert not closed
    found.close()  # type: ignore[attr-defined]
    assert closed
    assert len(list(warning_of_one_class(batches, world, lambda line: None)(0))) == 2
    return lines


def test_one_class_is_told_and_several_are_not() -> None:
    (line,) = said(CPU, 7, 7, 7, 7)
    assert line.startswith("all 4 images of the first batch are of class 7: DAMSM")
    assert "nothing to learn" in line
    assert not said(CPU, 7, 7, 7, 8)
    assert not said(CPU, 7)  # a single image says nothing


def on_ranks(world: World) -> tuple[list[str], list[str]]:
    return said(world, 1 + world.rank, 1 + world.rank), said(world, 3, 3)


def test_all_ranks_look_together(tmp_path: Path) -> None:
    run_ranks(on_ranks, 2, tmp_path)
    for rank in range(2):
        apart, alike = torch.load(tmp_path / f"{rank}.pt")
        assert not apart
        assert alike[0].startswith("all 4 images of the first batch are of class 3")
