"""The protocol's hash changes with everything that moves a score."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import pytest

from t2i_hpc.metrics.protocol import Protocol

PROTOCOL = Protocol(
    data="d" * 64,
    captions="e" * 64,
    split="test",
    images=1000,
    real_images=900,
    resolution=64,
    detector="inception",
    detector_sha256="6" * 64,
    preprocessing="bilinear",
    seed=1,
    caption_choice="one",
    caption_words="18",
    truncation="plain",
    weights="averaged",
    rounding="nearest",
    crop="centre",
    selection="even",
    features="float32",
    splits=10,
    kid_subsets=100,
    kid_subset_size=1000,
    neighbourhood=3,
    candidates=100,
    folds=10,
    encoders="own",
    clip="none",
)
REAL_SIDE = {
    "data",
    "split",
    "real_images",
    "resolution",
    "detector",
    "detector_sha256",
    "preprocessing",
    "crop",
    "selection",
    "features",
}


def test_the_hash_is_short_and_stable() -> None:
    assert PROTOCOL.hash == replace(PROTOCOL).hash == "588175261250"
    assert len(PROTOCOL.real_hash) == 12


@pytest.mark.parametrize("name", [field.name for field in fields(Protocol)])
def test_every_setting_counts(name: str) -> None:
    changes: dict[str, Any] = {name: getattr(PROTOCOL, name) * 2}
    changed = replace(PROTOCOL, **changes)
    assert changed.hash != PROTOCOL.hash
    assert (changed.real_hash == PROTOCOL.real_hash) == (name not in REAL_SIDE)


def test_the_text_names_all_settings() -> None:
    text = PROTOCOL.as_dict()
    assert set(text) == {field.name for field in fields(Protocol)}
    assert text["resolution"] == 64
