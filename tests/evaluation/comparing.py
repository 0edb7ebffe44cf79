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
    Division,
    spread,
)
from t2i_hpc.evaluation.protocol import Protocol
from tests.evaluation.fakes import FakeDetector, fake_images
from tests.evaluation.test_protocol import PROTOCOL as ANY_PROTOCOL

IMAGES, REAL_IMAGES, BATCH = 53, 41, 4
METRICS = ("fid", "is", "kid", "prc", "r_precision", "clip_score")
PROTOCOL = replace(
    ANY_PROTOCOL,
    images=IMAGES,
    real_images=REAL_IMAGES,
    resolution=8,
    splits=3,
    kid_subsets=4,
    kid_subset_size=20,
    folds=4,
)


def generated_images(numbers: Sequence[int]) -> Tensor:
    return fake_images(numbers, seed=0)


def real_images_drawn(numbers: Sequence[int]) -> Tensor:
    return fake_images(spread(numbers, REAL_IMAGES, REAL_IMAGES), seed=1)


def judge_by_three(numbers: range, images: Tensor) -> npt.NDArray[np.bool_]:
    """Images whose number can be divided by three find their caption."""
    assert len(images) == len(numbers)
    return np.array([number % 3 == 0 for number in numbers])


def rate_by_seven(numbers: range, images: Tensor) -> npt.NDArray[np.float64]:
    """Image i is rated with i modulo seven."""
    assert len(images) == len(numbers)
    return np.array([number % 7 for number in numbers], dtype=np.float64)


def make_comparison(
    run: Path,
    parts: int = 1,
    protocol: Protocol = PROTOCOL,
    checkpoint: str = "c" * 64,
    metrics: Sequence[str] = ("fid",),
) -> Comparison:
    return Comparison(
        output=run,
        cache=run / "real",
        subject=Subject(
            checkpoint, 2000, generated_images, lambda: judge_by_three, lambda: rate_by_seven
        ),
        draw_real=real_images_drawn,
        detector=FakeDetector.identity,
        protocol=protocol,
        names=dict.fromkeys(METRICS, "mine"),
        metrics=metrics,
        division=Division(parts, BATCH),
        device=torch.device("cpu"),
    )


def compute(comparison: Comparison, parts: Iterable[int] | None = None) -> int:
    """Compute parts, all if none are named; return how many images the detector looked at."""
    detector = FakeDetector()
    comparison.compute(range(comparison.division.parts) if parts is None else parts, detector)
    return detector.images
