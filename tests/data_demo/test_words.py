"""Captions: grammar, length, colors by name."""

from __future__ import annotations

import numpy as np
import pytest

from shards.demo.captions import MOST_WORDS, captions, choose_tags, common_tags, fits
from shards.demo.colors import dominant_colors, join
from shards.demo.phrases import Words, noun_phrase
from t2i_hpc.common.errors import DataError


@pytest.mark.parametrize(
    ("label", "phrase"),
    [
        ("red apple", "a red apple"),
        ("orange heart", "an orange heart"),
        ("unicorn", "a unicorn"),
        ("one o\N{RIGHT SINGLE QUOTATION MARK}clock", "a clock showing one o'clock"),
        ("person: red hair", "a person with red hair"),
        ("grapes", "grapes"),
        ("people holding hands", "people holding hands"),
        ("cactus", "a cactus"),
        ("face with rolling eyes", "a face with rolling eyes"),
    ],
)
def test_labels_become_noun_phrases(label: str, phrase: str) -> None:
    assert noun_phrase(label) == phrase


def test_what_rules_get_wrong_stands_in_the_table() -> None:
    words = Words.shipped()
    assert words.thing("thumbs up") == "a hand with the thumb up"
    needless = [k for k, phrase in words.phrase_of_label.items() if noun_phrase(k) == phrase]
    assert needless == []


def test_a_label_can_have_another_kind_than_its_subgroup() -> None:
    words = Words.shipped()
    assert words.kind("red apple", "food-fruit") == "a fruit"
    assert words.kind("skull", "face-negative") == "a white skull"
    with pytest.raises(DataError, match="no kind for the subgroup 'new'"):
        words.kind("red apple", "new")


@pytest.mark.parametrize(
    ("rgb", "name"),
    [
        ((255, 0, 0), "red"),
        ((255, 128, 0), "orange"),
        ((255, 220, 0), "yellow"),
        ((0, 160, 60), "green"),
        ((60, 190, 255), "light blue"),
        ((20, 60, 230), "blue"),
        ((140, 40, 220), "purple"),
        ((255, 80, 180), "pink"),
        ((120, 70, 40), "brown"),
        ((10, 10, 10), "black"),
        ((130, 130, 130), "grey"),
        ((250, 250, 250), "white"),
    ],
)
def test_a_color_has_the_name_people_give_it(rgb: tuple[int, int, int], name: str) -> None:
    pixels = np.full((4, 4, 4), 255, dtype=np.uint8)
    pixels[..., :3] = rgb
    assert dominant_colors(pixels) == [name]


def test_colors_come_by_share_and_transparent_pixels_do_not_count() -> None:
    pixels = np.zeros((10, 10, 4), dtype=np.uint8)
    pixels[:6] = (255, 0, 0, 255)
    pixels[6:9] = (20, 60, 230, 255)
    pixels[9:] = (0, 160, 60, 100)
    assert dominant_colors(pixels) == ["red", "blue"]
    pixels[6:9, :9] = (255, 0, 0, 255)
    assert dominant_colors(pixels) == ["red"]


def test_five_different_captions_of_at_most_eighteen_words() -> None:
    long = "a face with a hand over its mouth and hat"
    texts = captions(long, "a yellow face with a hand", ["yellow", "orange"], ["smile"])
    assert len(set(texts)) == 5
    assert all(fits(text) for text in texts)
    assert all(long in text for text in texts)
    assert max(len(text.split()) for text in texts) <= MOST_WORDS


def test_tags_are_the_common_ones_that_add_something() -> None:
    counts = common_tags([["fruit", "food", "the"], ["food"], ["food", "fruit"]], ["the"], 2)
    assert counts == {"fruit": 2, "food": 3}
    assert choose_tags(["fruit", "food", "rare"], counts, "a red apple") == ["food", "fruit"]
    assert choose_tags(["fruit", "food"], counts, "two fruits") == ["food"]


def test_lists_are_joined_as_people_do() -> None:
    assert [join(["a"]), join(["a", "b"]), join(["a", "b", "c"])] == ["a", "a and b", "a, b and c"]
