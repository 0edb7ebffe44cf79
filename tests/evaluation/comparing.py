"""A comparison of fake images by a fake detector, and how it is computed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from t2i_hpc.evaluation.comparison import Comparison, Subject
from t2i_hpc.evaluation.compute import (
    Sharding,
)
from t2i_hpc.evaluation.image_sources import spread
from t2i_hpc.evaluation.protocol import Protocol
from tests.evaluation.fakes import FakeDetector, fake_images
from tests.evaluation.test_protocol import PROTOCOL as ANY_PROTOCOL

IMAGES, REAL_IMAGES, TRAINING_IMAGES, BATCH = 53, 41, 37, 4
METRICS = (
    *("fid", "is", "kid", "mind", "prc", "density_coverage", "cmmd", "memorization", "diversity"),
    *("lpips", "r_precision", "clip_score", "fid_infinity"),
)
PROTOCOL = replace(
    ANY_PROTOCOL,
    images=IMAGES,
    real_images=REAL_IMAGES,
    resolution=8,
    splits=3,
    kid_subsets=4,
    kid_subset_size=20,
    mind_directions=200,
    training_images=TRAINING_IMAGES,
    folds=4,
)


def generated_images(numbers: Sequence[int]) -> Tensor:
    return fake_images(numbers, seed=0)


def real_images_of(numbers: Sequence[int]) -> Tensor:
    return fake_images(spread(numbers, REAL_IMAGES, REAL_IMAGES), seed=1)


def training_images_of(numbers: Sequence[int]) -> Tensor:
    return fake_images(spread(numbers, TRAINING_IMAGES, TRAINING_IMAGES), seed=2)


def every_third_first(numbers: range, images: Tensor) -> npt.NDArray[np.bool_]:
    """Of images whose number is a multiple of three the own caption ranks first."""
    assert len(images) == len(numbers)
    return np.array([number % 3 == 0 for number in numbers])


def rate_by_seven(numbers: range, images: Tensor) -> npt.NDArray[np.float64]:
    """Image i is rated with i modulo seven."""
    assert len(images) == len(numbers)
    return np.array([number % 7 for number in numbers], dtype=np.float64)


def make_comparison(
    run: Path,
    shards: int = 1,
    protocol: Protocol = PROTOCOL,
    checkpoint: str = "c" * 64,
    metrics: Sequence[str] = ("fid",),
) -> Comparison:
    return Comparison(
        output=run,
        cache=run / "real",
        subject=Subject(
            checkpoint,
            2000,
            generated_images,
            lambda: every_third_first,
            lambda: rate_by_seven,
        ),
        real_images_of=real_images_of,
        detector=FakeDetector.identity,
        protocol=protocol,
        names=dict.fromkeys(METRICS, "mine"),
        metrics=metrics,
        sharding=Sharding(shards, BATCH),
        device=torch.device("cpu"),
        training_images_of=training_images_of,
        lpips=lambda: lambda images: images.flatten(1).float() / 255,
    )


def compute(comparison: Comparison, shards: Iterable[int] | None = None) -> int:
    """Compute shards, all if none are named; return of how many images features were extracted."""
    detector = FakeDetector()
    chosen = range(comparison.sharding.shards) if shards is None else shards
    comparison.compute(chosen, detector)
    return detector.images
