"""benchmarks/color_words.py: which color captions name, and which one a picture has."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.color_words import COLORS, color_of, middle, shares


@pytest.mark.parametrize(
    ("captions", "color"),
    [
        (["a red flower", "Red petals, green leaves"], 0),
        (["a red flower", "big petals"], 0),  # half of them is enough
        (["a red flower", "big petals", "large petals"], None),
        (["red and white petals", "red petals"], None),
        (["reddish petals"], None),
        (["big petals"], None),
    ],
)
def test_captions_agree_on_a_color_or_on_none(captions: list[str], color: int | None) -> None:
    assert color_of(captions, COLORS) == color


def test_a_picture_has_the_color_that_is_nearest_to_its_middle() -> None:
    image = np.zeros((8, 8, 3), dtype=np.uint8)
    image[2:6, 2:6] = (200, 0, 0)  # the border does not count
    assert middle(image).tolist() == [200, 0, 0]
    means = np.array([[255.0, 0, 0], [0, 0, 255]])
    middles = np.array([[200.0, 0, 0], [0, 0, 200], [0, 0, 200], [10, 0, 200]])
    assert shares(middles, np.array([0, 0, 1, 1]), means) == [0.5, 1.0]
