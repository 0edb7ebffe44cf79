"""Every metric is the same score over any number of shards, ranks and images in a batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from t2i_hpc.common.seeds import generator
from t2i_hpc.evaluation.comparison import Comparison, Subject
from t2i_hpc.evaluation.compute import Sharding
from t2i_hpc.evaluation.image_sources import spread
from t2i_hpc.runs.partial_statistics import shards_of_rank
from t2i_hpc.sampling.image_files import ImagesOf
from tests.evaluation.comparing import (
    METRICS,
    PROTOCOL,
    REAL_IMAGES,
    TRAINING_IMAGES,
    every_third_first,
    make_comparison,
    rate_by_seven,
)
from tests.evaluation.fakes import FakeDetector, fake_images

SEEDS = (1, 2)
MANY = replace(PROTOCOL, images=52)  # whole captions of four images


class WholeNumbers(FakeDetector):
    """Features that are exact, so that no batch rounds them as another one does."""

    def __init__(self) -> None:
        super().__init__()
        draws = generator(1, "whole numbers", 0).integers(-9, 10, (192, self.identity.width))
        self._whole = torch.from_numpy(draws)

    def features(self, images: Tensor) -> Tensor:
        return (images.flatten(1).long() @ self._whole) / 1024


@cache
def _image(number: int, seed: int) -> Tensor:
    return fake_images([number], seed)[0]


def _images_of(seed: int, count: int = 0) -> ImagesOf:
    """Return what gives images by number; beyond `count` they begin again."""

    def give(numbers: Sequence[int]) -> Tensor:
        places = spread(numbers, count, count) if count else numbers
        return torch.stack([_image(place, seed) for place in places])

    return give


def _subject(seed: int) -> Subject:
    return Subject("c" * 64, 0, _images_of(seed), lambda: every_third_first, lambda: rate_by_seven)


def _compared(run: Path, shards: int, batch: int) -> Comparison:
    usual = replace(
        make_comparison(run, protocol=MANY, metrics=METRICS),
        sharding=Sharding(shards, batch),
        real_images_of=_images_of(4, REAL_IMAGES),
        training_images_of=_images_of(5, TRAINING_IMAGES),
    )
    first, *others = (
        replace(usual, subject=_subject(seed), protocol=replace(MANY, seed=seed)) for seed in SEEDS
    )
    return replace(first, others=others)


def _scores(run: Path, shards: int = 1, ranks: int = 1, batch: int = 4) -> dict[str, list[float]]:
    """Return each score, its spread over seeds, the seeds' values and that of real halves."""
    comparison = _compared(run, shards, batch)
    for rank in reversed(range(ranks)):
        comparison.compute(shards_of_rank(shards, rank, ranks), WholeNumbers())
    return {row["metric"]: _numbers(row) for row in comparison.score()}


def _numbers(row: dict[str, Any]) -> list[float]:
    halves = row.get("real_halves", {}).get("distance", 0.0)
    return [row["value"], row["std"], *row["values"], halves]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[float]]:
    return _scores(tmp_path_factory.mktemp("alone"))


@pytest.mark.parametrize(
    ("shards", "ranks", "batch"),
    [(2, 1, 4), (3, 2, 4), (7, 3, 4), (16, 2, 4), (1, 1, 8), (3, 3, 12), (2, 2, 52)],
)
def test_every_metric_is_the_same_by_any_sharding(
    tmp_path: Path, alone: dict[str, list[float]], shards: int, ranks: int, batch: int
) -> None:
    found = _scores(tmp_path, shards, ranks, batch)
    assert list(found) == list(alone)
    assert len(found) == len(METRICS) + 2  # precision and recall, density and coverage
    for metric, expected in alone.items():
        assert found[metric] == pytest.approx(expected, rel=1e-9, abs=1e-12), metric
    assert alone["FD (fake)"][-1] > 0
