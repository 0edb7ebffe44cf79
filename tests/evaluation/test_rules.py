"""What image i is made of comes from (seed, i); noise, rounding and resizing do as they say."""

from __future__ import annotations

from collections import Counter
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from t2i_hpc.config.data import DataConfig
from t2i_hpc.data.split import Split
from t2i_hpc.evaluation.image_sources import ResizeRule
from t2i_hpc.sampling.rules import PLAIN, GenerationRules, caption_of


def test_one_caption_is_what_the_split_says(shards: Path) -> None:
    split = Split.open(DataConfig(path=str(shards)), "train")
    for number in (0, 5, 24, 100):
        assert caption_of(split, number, 3, PLAIN) == split.caption(number, 3)[1]


def test_all_captions_come_in_turn(shards: Path) -> None:
    split = Split.open(DataConfig(path=str(shards)), "train")
    rules = GenerationRules(captions="all")
    texts = Counter(caption_of(split, number, 1, rules) for number in range(3 * split.count))
    every = Counter(text for n in range(split.count) for text in split.sample(n).captions)
    assert texts == every


def test_truncated_noise_keeps_its_order_and_its_bound() -> None:
    plain = PLAIN.noise(range(50), 40, seed=1)
    cut = GenerationRules(truncation=1.0).noise(range(50), 40, seed=1)
    assert cut.dtype == torch.float32
    assert cut.abs().max() <= 1.0
    assert torch.equal(cut.flatten().argsort(), plain.flatten().argsort())
    # Of a normal distribution truncated at ±1 the standard deviation is 0.5396.
    assert float(cut.std()) == pytest.approx(0.5396, abs=0.02)
    torch.testing.assert_close(GenerationRules(truncation=9.0).noise(range(50), 40, 1), plain)


def test_rounding() -> None:
    values = torch.tensor([-1.2, -1.0, 0.0, 0.9999, 1.0, 1.2])
    assert PLAIN.levels(values).tolist() == [0, 0, 128, 255, 255, 255]
    assert GenerationRules(rounding="down").levels(values).tolist() == [0, 0, 127, 254, 255, 255]


def test_every_rule_is_in_the_protocol() -> None:
    """A setting that is added to the rules and not to their text would move scores unseen."""
    others: dict[str, Any] = {
        "captions": "all",
        "truncation": 2.0,
        "rounding": "down",
        "caption_tokens": 3,
        "images_per_caption": 2,
    }
    assert set(others) == {each.name for each in fields(GenerationRules)}
    texts = [replace(PLAIN, **{name: value}).text() for name, value in others.items()]
    assert len({tuple(text.items()) for text in [PLAIN.text(), *texts]}) == len(others) + 1
    crops: dict[str, Any] = {"crop": "center", "filter": "lanczos", "seed": 2}
    assert set(crops) == {each.name for each in fields(ResizeRule)}
    random = ResizeRule("random")
    resize_rules = [random, *(replace(random, **{name: value}) for name, value in crops.items())]
    assert len({resize_rule.text() for resize_rule in resize_rules}) == len(crops) + 1
    assert ResizeRule(seed=2).text() == ResizeRule().text()  # a center crop draws nothing


def test_the_center_is_that_of_the_split(shards: Path) -> None:
    split = Split.open(DataConfig(path=str(shards)), "train")
    expected = split.evaluation_images([2], 32)[0].permute(1, 2, 0).numpy()
    np.testing.assert_array_equal(ResizeRule().resize(split.image(2), 2, 32), expected)


def test_random_crops_come_from_seed_and_number() -> None:
    image = np.random.default_rng(1).integers(0, 256, (90, 120, 3), dtype=np.uint8)
    resize_rule = ResizeRule("random")
    first = resize_rule.resize(image, 1, 64)
    assert first.shape == (64, 64, 3)
    np.testing.assert_array_equal(resize_rule.resize(image, 1, 64), first)
    others = [resize_rule.resize(image, 2, 64), ResizeRule("random", seed=2).resize(image, 1, 64)]
    assert all(not np.array_equal(other, first) for other in others)


@pytest.mark.parametrize("name", ["bicubic", "lanczos"])
def test_filters_differ(name: str) -> None:
    image = np.random.default_rng(1).integers(0, 256, (90, 120, 3), dtype=np.uint8)
    resized = ResizeRule(filter=name).resize(image, 0, 32)
    assert resized.shape == (32, 32, 3)
    assert not np.array_equal(resized, ResizeRule().resize(image, 0, 32))
