"""Top-1 retrieval: what counts as right, as wrong, and not at all."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from t2i_hpc.config.data import DataConfig
from t2i_hpc.data.split import Split
from t2i_hpc.training.callbacks.retrieval import HeldOut, most_attended, top_1, top_1_by_chance


def pairs(captions: list[str], owners: list[int], classes: list[int]) -> HeldOut:
    images = torch.zeros(len(classes), 3, 8, 8, dtype=torch.uint8)
    return HeldOut(images, torch.tensor(classes), captions, torch.tensor(owners))


def score(rows: list[list[float]], of: HeldOut) -> float:
    return top_1(torch.tensor(rows), of)


def test_any_caption_of_the_image_is_right() -> None:
    two = pairs(["a", "b", "c", "d"], [0, 0, 1, 1], [0, 1])
    assert score([[0.1, 0.9, 0.5, 0.2], [0.9, 0.1, 0.2, 0.3]], two) == 0.5
    assert top_1_by_chance(two) == 0.5


def test_the_same_words_are_right_whoever_owns_them() -> None:
    two = pairs(["a", "b", "a", "d"], [0, 0, 1, 1], [0, 1])
    assert score([[0.1, 0.2, 0.9, 0.3], [0.1, 0.9, 0.2, 0.3]], two) == 0.5


def test_captions_of_other_images_of_the_class_do_not_count() -> None:
    birds = pairs(["a", "b", "c"], [0, 1, 2], [7, 7, 8])
    assert score([[0.5, 0.9, 0.1], [0.9, 0.5, 0.7], [0.1, 0.2, 0.3]], birds) == pytest.approx(2 / 3)
    assert top_1_by_chance(birds) == pytest.approx((1 / 2 + 1 / 2 + 1 / 3) / 3)


def test_encoders_that_tell_nothing_apart_find_nothing() -> None:
    two = pairs(["a", "b"], [0, 1], [0, 1])
    assert score([[1.0, 1.0], [1.0, 1.0]], two) == 0.0
    assert score([[float("nan")] * 2] * 2, two) == 0.0


def test_held_out_pairs_have_several_captions_an_image(shards: Path) -> None:
    split = Split.open(DataConfig(path=str(shards)), "test")
    held_out = HeldOut.of(split, 64, seed=1)
    assert held_out.images.shape == (12, 3, 64, 64)
    assert held_out.owners.tolist() == [image for image in range(12) for _ in range(3)]
    for image in range(12):
        own = [held_out.captions[place] for place in range(3 * image, 3 * image + 3)]
        assert own == list(split.sample(image).captions)
    assert set(held_out.classes.tolist()) == {0, 1, 2}


def peaked(*peaks: float) -> Tensor:
    """Maps of 2 × 2 regions whose largest weight is given, the others sharing the rest."""
    return torch.tensor([[[peak, (1 - peak) / 3], [(1 - peak) / 3] * 2] for peak in peaks])


def test_the_most_attended_words_have_the_highest_peaks_and_stand_there_once() -> None:
    maps = peaked(0.3, 0.9, 0.5, 0.7, 1.0)
    shown = most_attended(["a", "red", "a", "bird"], maps, most=3)
    assert [(word.word, round(word.peak, 3)) for word in shown] == [
        ("red", 3.6),
        ("bird", 2.8),
        ("a", 2.0),
    ]
