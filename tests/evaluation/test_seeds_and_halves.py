"""Scores over drawing seeds in one row, and Fréchet distances beside what real images get."""

from __future__ import annotations

import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from t2i_hpc.common.errors import ConfigurationError
from t2i_hpc.common.files import read_json_lines
from t2i_hpc.evaluation.build import comparisons
from t2i_hpc.evaluation.comparison import Subject
from t2i_hpc.evaluation.detectors import build_detector
from t2i_hpc.evaluation.fid import Moments, frechet_distance
from t2i_hpc.evaluation.reference_statistics import read_reference, write_reference
from t2i_hpc.evaluation.scores import score_curves, score_line
from tests.evaluation.comparing import (
    BATCH,
    PROTOCOL,
    REAL_IMAGES,
    compute,
    make_comparison,
    real_images_of,
)
from tests.evaluation.fakes import FakeDetector, fake_images
from tests.evaluation.test_copies_and_diversity import CPU, config_of, run

__all__ = ["run"]


def _subject(seed: int) -> Subject:
    return Subject("c" * 64, 2000, lambda numbers: fake_images(numbers, seed), of_seed=_subject)


def _halves(seed: int, half: int) -> float:
    """Distance of drawn real images from the others, from features of whole batches."""
    firsts = range(0, REAL_IMAGES, BATCH)
    rows = torch.cat([FakeDetector().features(real_images_of(range(n, n + BATCH))) for n in firsts])
    order = np.random.RandomState(seed).permutation(REAL_IMAGES)
    moments = [Moments.empty(6), Moments.empty(6)]
    for each, numbers in zip(moments, (order[:half], order[half:]), strict=True):
        each.add_rows(rows[torch.from_numpy(numbers)])
    return frechet_distance(*moments)


def test_a_distance_stands_beside_that_of_real_halves(tmp_path: Path) -> None:
    found = []
    for shards in (1, 3, 7):
        comparison = make_comparison(tmp_path / str(shards), shards)
        compute(comparison)
        found.append(comparison.score()[0]["real_halves"])
    expected = _halves(PROTOCOL.seed, REAL_IMAGES // 2)
    assert [each["distance"] for each in found] == pytest.approx([expected] * 3, rel=1e-9)
    assert found[0]["protocol"] == PROTOCOL.halves_hash
    moved = {
        name: replace(PROTOCOL, **{name: getattr(PROTOCOL, name) * 2}).halves_hash
        for name in ("seed", "data", "detector_sha256", "truncation", "kid_subsets", "images")
    }
    kept = {name for name, value in moved.items() if value == PROTOCOL.halves_hash}
    assert kept == {"truncation", "kid_subsets", "images"}
    # Few generated images: as many real ones stand where they stand.
    few = make_comparison(tmp_path / "few", 2, replace(PROTOCOL, images=12))
    compute(few)
    (row,) = few.score()
    assert row["real_halves"]["distance"] == pytest.approx(_halves(PROTOCOL.seed, 12), rel=1e-9)
    (curve,) = score_curves([row])
    assert curve.best.over_real == pytest.approx(row["value"] / row["real_halves"]["distance"])
    assert f"({curve.best.over_real:.3g} x real halves)" in score_line(row)


def test_statistics_without_halves_serve_as_before(tmp_path: Path) -> None:
    before = make_comparison(tmp_path, metrics=["kid"])
    compute(before)
    before.score()
    comparison = make_comparison(tmp_path)
    assert compute(comparison) == 0
    (row,) = comparison.score()
    assert "real_halves" not in row


def test_seeds_give_one_row_with_their_spread(tmp_path: Path) -> None:
    values = []
    for seed in (1, 2, 3):
        alone = make_comparison(tmp_path / str(seed), protocol=replace(PROTOCOL, seed=seed))
        alone = replace(alone, subject=_subject(seed))
        compute(alone)
        values.append(alone.score()[0]["value"])
    rows = []
    for shards in (1, 3):
        first = replace(make_comparison(tmp_path / f"all {shards}", shards), subject=_subject(1))
        others = [
            replace(first, subject=_subject(seed), protocol=replace(PROTOCOL, seed=seed))
            for seed in (2, 3)
        ]
        comparison = replace(first, others=others)
        assert comparison.missing()[0] == ["generated", "real"]
        compute(comparison)
        assert comparison.missing() == {}
        rows += comparison.score()
    for row in rows:
        assert row["values"] == pytest.approx(values, rel=1e-9)
        assert row["value"] == pytest.approx(statistics.fmean(values), rel=1e-9)
        assert row["std"] == pytest.approx(statistics.stdev(values), rel=1e-6)
        assert row["seeds"] == [1, 2, 3]
        assert row["protocol"] == replace(PROTOCOL, seeds=3).hash_of("fid")
        assert row["protocol"] != PROTOCOL.hash_of("fid")
        assert row["real_halves"]["distance"] > 0
    (curve,) = score_curves(rows)
    assert "standard deviation over 3 drawing seeds" in curve.caution
    assert read_json_lines(tmp_path / "all 1" / "scores.jsonl") == rows[:1]


def test_a_run_is_drawn_by_several_seeds(run: Path, tmp_path: Path) -> None:
    def scored(*words: str) -> dict[str, Any]:
        config = config_of(f"run={run}", "evaluation.metrics=[fid]", *words)
        (comparison,) = comparisons(config)
        comparison.compute(range(1), build_detector(config.evaluation, CPU))
        return comparison.score()[0]

    one, two = (scored(f"evaluation.seed={seed}")["value"] for seed in (4, 5))
    row = scored("evaluation.seed=4", "evaluation.seeds=2")
    assert row["values"] == [one, two]
    assert one != two
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for number, image in enumerate(fake_images(range(8))):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(pictures / f"{number}.png")
    words = (f"images={pictures}", f"reference={pictures}", "evaluation.seeds=2")
    with pytest.raises(ConfigurationError, match="leave it out"):
        list(comparisons(config_of(*words, "evaluation.metrics=[fid]")))


def test_statistics_in_a_file_say_what_real_images_get(tmp_path: Path) -> None:
    comparison = make_comparison(tmp_path)
    compute(comparison)
    (row,) = comparison.score()
    path, detector = tmp_path / "ours.npz", comparison.detector
    halves = comparison.real_halves()
    write_reference(path, comparison.real_gaussian(), detector, "real", halves)
    found = read_reference(path, detector)
    assert found.real_halves == halves
    other = make_comparison(tmp_path / "other")
    against = replace(other, reference=found.gaussian, reference_halves=found.real_halves)
    compute(against)
    assert against.score()[0]["real_halves"] == row["real_halves"]
