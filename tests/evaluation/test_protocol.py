"""Each metric's hash changes with everything that moves the metric, and with nothing else."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import pytest

from t2i_hpc.config.evaluation import METRICS
from t2i_hpc.evaluation.protocol import Protocol

PROTOCOL = Protocol(
    data="d" * 64,
    captions="e" * 64,
    split="test",
    stored="png",
    images=1000,
    real_images=900,
    resolution=64,
    detector="inception",
    detector_sha256="6" * 64,
    preprocessing="bilinear",
    seed=1,
    caption_choice="one",
    caption_tokens="18",
    truncation="plain",
    weights="ema",
    rounding="nearest",
    crop="center",
    selection="even",
    features="float32",
    score_side=None,
    splits=10,
    kid_subsets=100,
    kid_subset_size=1000,
    mind_directions=200,
    infinity_points=7,
    training="7" * 64,
    training_images=800,
    memorized_share=0.05,
    images_per_caption=4,
    lpips="some",
    neighbors=3,
    candidates=100,
    folds=10,
    encoders="own",
    clip="none",
    arithmetic=1,
)
# Written down from what each metric is, not from the code: which settings move which metric.
IMAGES = "captions images resolution seed caption_choice caption_tokens truncation weights rounding"
REAL = "data real_images resolution crop selection"
DETECTOR = "detector detector_sha256 preprocessing"
TRAINING = "training training_images"
MOVED_BY = {
    "fid": f"{IMAGES} {REAL} {DETECTOR}",
    "is": f"{IMAGES} {DETECTOR} score_side splits",
    "kid": f"{IMAGES} {REAL} {DETECTOR} features kid_subsets kid_subset_size",
    "mind": f"{IMAGES} {REAL} {DETECTOR} features mind_directions",
    "prc": f"{IMAGES} {REAL} {DETECTOR} features neighbors",
    "density_coverage": f"{IMAGES} {REAL} {DETECTOR} features neighbors",
    "cmmd": f"{IMAGES} {REAL} {DETECTOR} features",
    "memorization": f"{IMAGES} {REAL} {DETECTOR} features {TRAINING} memorized_share",
    "diversity": f"{IMAGES} {DETECTOR} features images_per_caption",
    "lpips": f"{IMAGES} images_per_caption lpips",
    "r_precision": f"{IMAGES} candidates folds encoders",
    "clip_score": f"{IMAGES} clip",
    "fid_infinity": f"{IMAGES} {REAL} {DETECTOR} features infinity_points",
}


NAMES = [field.name for field in fields(Protocol)]


def _changed(name: str) -> Protocol:
    value = getattr(PROTOCOL, name)
    other: Any = 128 if value is None else value * 2
    return replace(PROTOCOL, **{name: other})


@pytest.mark.parametrize("metric", METRICS)
def test_a_metrics_hash_changes_with_what_moves_it_alone(metric: str) -> None:
    moves = {name for name in NAMES if _changed(name).hash_of(metric) != PROTOCOL.hash_of(metric)}
    assert moves == {*MOVED_BY[metric].split(), "arithmetic", "seeds"}


def test_statistics_are_kept_by_images_and_detector_alone() -> None:
    changed = {name: _changed(name) for name in NAMES}
    generated = {n for n, p in changed.items() if p.generated_hash != PROTOCOL.generated_hash}
    assert generated == {*f"{IMAGES} {DETECTOR}".split(), "arithmetic"}
    real = {name for name, each in changed.items() if each.real_hash != PROTOCOL.real_hash}
    assert real == {*f"{REAL} {DETECTOR}".split(), "arithmetic"}
    training = {n for n, p in changed.items() if p.training_hash != PROTOCOL.training_hash}
    assert training == {*f"{TRAINING} resolution crop {DETECTOR}".split(), "arithmetic"}


@pytest.mark.parametrize("metric", METRICS)
def test_the_key_of_sums_is_of_what_the_images_do_not_say(metric: str) -> None:
    said = f"{IMAGES} {DETECTOR} {REAL}".split()
    for name in NAMES:
        own = name in MOVED_BY[metric].split() and name not in said
        assert not own or _changed(name).key_of(metric) != PROTOCOL.key_of(metric)


def test_no_seed_makes_image_files() -> None:
    files = replace(PROTOCOL, captions="")
    moved = {
        name for name in METRICS if replace(files, seed=2).hash_of(name) != files.hash_of(name)
    }
    assert moved == {"is", "kid", "mind", "r_precision", "fid_infinity"}


@pytest.mark.parametrize("metric", METRICS)
def test_the_text_names_what_the_hash_covers(metric: str) -> None:
    told = PROTOCOL.text_of(metric)
    expected = {*MOVED_BY[metric].split(), "arithmetic", "split"}
    with_real = "data" in expected
    assert told.keys() == (expected | {"stored"} if with_real else expected)
    assert told["resolution"] == 64
