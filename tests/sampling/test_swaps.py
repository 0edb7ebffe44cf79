"""Captions with words to swap."""

from __future__ import annotations

import pytest

from t2i_hpc.common.errors import ConfigurationError
from t2i_hpc.sampling.request import MOST_ROWS, expand


def captions(*asked: str) -> list[str]:
    return [row.caption for row in expand(asked)]


def test_each_word_makes_a_row_in_the_order_written() -> None:
    rows = expand(["a {red, blue,yellow} bird", "plain"])
    assert [(row.caption, row.asked) for row in rows] == [
        ("a red bird", "a {red, blue,yellow} bird"),
        ("a blue bird", "a {red, blue,yellow} bird"),
        ("a yellow bird", "a {red, blue,yellow} bird"),
        ("plain", "plain"),
    ]


def test_swaps_multiply_and_the_last_changes_quickest() -> None:
    assert captions("{a,b}{1,2} x {p q,r}") == [
        f"{first}{second} x {third}" for first in "ab" for second in "12" for third in ("p q", "r")
    ]


def test_a_word_may_be_left_out() -> None:
    assert captions("a {small,} bird") == ["a small bird", "a bird"]


def test_any_length_is_taken() -> None:
    long = " ".join(f"word{number}" for number in range(500))
    assert captions(f"{long} {{x,y}}") == [f"{long} x", f"{long} y"]


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ("a {red,blue bird", "open or nested"),
        ("a red} bird", "open or nested"),
        ("a {red,{blue,green}} bird", "open or nested"),
        ("a }red{ bird", "open or nested"),
        ("a {} bird", "are empty"),
        ("a { , } bird", "are empty"),
        ("  ", "is empty"),
        ("{,a}", "is empty"),
    ],
)
def test_what_cannot_be_read_is_refused(asked: str, said: str) -> None:
    with pytest.raises(ConfigurationError, match=said) as caught:
        expand([asked])
    assert repr(asked) in str(caught.value)


def test_a_drawing_has_64_rows_at_most() -> None:
    assert len(captions("{a,b,c,d} {a,b,c,d} {a,b,c,d}")) == MOST_ROWS
    with pytest.raises(ConfigurationError, match="make 65 rows"):
        expand(["{a,b,c,d} {a,b,c,d} {a,b,c,d}", "one more"])
    with pytest.raises(ConfigurationError, match="1,000,000,000,000 rows"):
        expand(["{0,1,2,3,4,5,6,7,8,9}" * 12])
