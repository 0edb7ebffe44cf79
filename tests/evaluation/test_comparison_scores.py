"""Scores of both image sets: known cases, order of the scores, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from t2i_hpc.common.errors import EvaluationError
from t2i_hpc.common.files import read_json_lines
from t2i_hpc.evaluation import neighbors
from t2i_hpc.evaluation.collectors import groups_of
from t2i_hpc.evaluation.comparison import Subject
from t2i_hpc.evaluation.compute import merged
from t2i_hpc.sampling.image_files import ImagesOf
from tests.evaluation.comparing import (
    IMAGES,
    METRICS,
    PROTOCOL,
    compute,
    generated_images,
    make_comparison,
)
from tests.evaluation.fakes import FakeDetector


def test_the_frechet_distance_is_recorded_last(tmp_path: Path) -> None:
    comparison = make_comparison(tmp_path, metrics=METRICS)
    compute(comparison)
    comparison.score()
    names = [row["metric"] for row in read_json_lines(tmp_path / "scores.jsonl")]
    assert names == [
        "Inception score (fake)",
        "KID (fake)",
        "MIND (fake)",
        "precision (fake)",
        "recall (fake)",
        "density (fake)",
        "coverage (fake)",
        "CMMD (fake)",
        "memorization (fake)",
        "per-prompt diversity (fake)",
        "LPIPS diversity",
        "R-precision",
        "CLIP score",
        "FD∞ (fake)",
        "FD (fake)",
    ]


def test_r_precision_is_the_share_of_hits_over_folds(tmp_path: Path) -> None:
    comparison = make_comparison(tmp_path, 3, metrics=["r_precision"])
    compute(comparison)
    (row,) = comparison.score()
    folds = groups_of(IMAGES, PROTOCOL.folds, PROTOCOL.seed)
    shares = [
        np.mean([number % 3 == 0 for number in np.flatnonzero(folds == fold)])
        for fold in range(PROTOCOL.folds)
    ]
    assert row["value"] == pytest.approx(np.mean(shares), rel=1e-12)
    assert row["std"] == pytest.approx(np.std(shares), rel=1e-12)
    assert row["n_real"] == 0
    assert not (tmp_path / "real").exists()


def test_features_may_be_kept_in_half_the_bytes(tmp_path: Path) -> None:
    scores = []
    for dtype in ("float32", "float16"):
        protocol = replace(PROTOCOL, features=dtype)
        comparison = make_comparison(tmp_path, 2, protocol, metrics=["kid"])
        compute(comparison)
        scores.append(comparison.score()[0]["value"])
        rows = merged(comparison.generated, comparison.sharding).features
        assert rows is not None
        assert rows.dtype == np.dtype(dtype)
        assert isinstance(rows, np.memmap)
    assert scores[0] != scores[1]
    assert scores[1] == pytest.approx(scores[0], rel=0.02)


def test_the_clip_score_is_the_mean_rating_with_its_standard_error(tmp_path: Path) -> None:
    comparison = make_comparison(tmp_path, 3, metrics=["clip_score"])
    compute(comparison)
    (row,) = comparison.score()
    ratings = np.arange(IMAGES) % 7
    assert row["value"] == pytest.approx(ratings.mean(), rel=1e-12)
    assert row["std"] == pytest.approx(ratings.std(ddof=1) / IMAGES**0.5, rel=1e-9)
    assert row["n_real"] == 0
    assert not (tmp_path / "real").exists()


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"detector": replace(FakeDetector.identity, classes=0)}, "Inception's classes"),
        ({"subject": Subject("c" * 64, 0, generated_images)}, "a folder of images has none"),
        ({"metrics": ()}, "metrics is empty"),
        ({"protocol": replace(PROTOCOL, splits=54)}, "splits=54 is more than the 53 images"),
        ({"protocol": replace(PROTOCOL, folds=54)}, "folds=54 is more than the 53 images"),
        ({"metrics": ["cmmd"]}, "CMMD is of CLIP's image codes, not of fake's features"),
        ({"metrics": ["diversity"]}, "fewer than evaluation.images_per_caption=4 images: take 52"),
        ({"protocol": replace(PROTOCOL, images=19)}, "evaluate at least 20"),
        ({"protocol": replace(PROTOCOL, training="d" * 64)}, "name another evaluation.split"),
    ],
)
def test_what_cannot_be_measured_is_refused(
    tmp_path: Path, changes: dict[str, Any], sentence: str
) -> None:
    possible = [name for name in METRICS if name not in ("cmmd", "diversity", "lpips")]
    comparison = make_comparison(tmp_path, metrics=possible)
    comparison.check()
    with pytest.raises(EvaluationError, match=sentence):
        replace(comparison, **changes).check()


def test_identical_sides_have_distance_zero(tmp_path: Path) -> None:
    protocol = replace(PROTOCOL, real_images=IMAGES)
    same = replace(make_comparison(tmp_path, 2, protocol), real_images_of=generated_images)
    compute(same)
    assert same.score()[0]["value"] == pytest.approx(0, abs=1e-6)


class FourCorners(FakeDetector):
    """Features of image i are corner i mod 4 of a square; levels say its center and half side."""

    identity = replace(FakeDetector.identity, width=2, classes=2)

    def features(self, images: Tensor) -> Tensor:
        corner, center, half = (images[:, 0, 0, place].float() for place in range(3))
        corners = torch.stack([corner // 2, corner % 2], dim=1) * 2 - 1
        return center[:, None] * torch.tensor([0.6, 0.8]) + corners * half[:, None]


def _corners(center: int, half: int) -> ImagesOf:
    def images_of(numbers: range) -> Tensor:
        images = torch.zeros(len(numbers), 3, 8, 8, dtype=torch.uint8)
        for image, number in zip(images, numbers, strict=True):
            image[0, 0, :3] = torch.tensor([number % 4, center, half])
        return images

    return images_of


def test_a_closed_form_goes_through_the_whole_path(tmp_path: Path) -> None:
    protocol = replace(PROTOCOL, images=40, real_images=60)

    def distance(center: int, half: int) -> float:
        comparison = replace(
            make_comparison(tmp_path / f"{center} {half}", 3, protocol),
            subject=Subject("c" * 64, 0, _corners(center, half)),
            real_images_of=_corners(0, 1),
            detector=FourCorners.identity,
        )
        comparison.compute(range(3), FourCorners())
        value: float = comparison.score()[0]["value"]
        return value

    # Covariances are h² N / (N − 1) times the identity, the means lie 5 apart.
    first, second = 4 * 40 / 39, 60 / 59
    expected = 5**2 + 2 * (first**0.5 - second**0.5) ** 2
    assert distance(5, 2) == pytest.approx(expected, rel=1e-6)
    assert distance(0, 1) < distance(1, 1) < distance(2, 1) < distance(2, 3)


def test_balls_are_computed_once_for_all_metrics_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sets: list[int] = []

    def counted(points: neighbors.Points, k: int) -> Tensor:
        sets.append(len(points.rows))
        return squared_radii(points, k)

    squared_radii = neighbors.squared_radii
    monkeypatch.setattr(neighbors, "squared_radii", counted)
    comparison = make_comparison(tmp_path, metrics=["prc", "density_coverage"])
    compute(comparison)
    comparison.score()
    assert sorted(sets) == [41, 53]  # real and generated images
