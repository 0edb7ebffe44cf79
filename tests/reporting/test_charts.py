"""Charts: round ticks, right places, nothing that is not finite, text escaped."""

from __future__ import annotations

import math
import re
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from t2i_hpc.reporting.charts import Axis, Line, line_chart, nice_ticks, thin
from t2i_hpc.reporting.score_groups import duration, score, short


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0, 100, [0, 25, 50, 75, 100]),
        (0.3, 1.7, [0, 0.5, 1, 1.5, 2]),
        (-3, 8, [-5, 0, 5, 10]),
        (5, 5, [4.5, 4.75, 5, 5.25, 5.5]),
    ],
)
def test_ticks_are_round(low: float, high: float, ticks: list[float]) -> None:
    assert nice_ticks(low, high, 5) == ticks


@given(st.floats(-1e9, 1e9), st.floats(0, 1e9))
def test_ticks_enclose_the_values_and_are_few(low: float, width: float) -> None:
    ticks = nice_ticks(low, low + width, 5)
    tolerance = 1e-6 * max(1.0, abs(low), width)
    assert ticks[0] <= low + tolerance
    assert ticks[-1] >= low + width - tolerance
    assert 2 <= len(ticks) <= 8


def test_an_axis_places_its_ends_and_its_middle() -> None:
    axis = Axis(10, 20, 100, 0)
    assert [axis.place(value) for value in (10, 15, 20)] == [100, 50, 0]


def test_thinning_keeps_the_mean() -> None:
    points = [(float(x), float(x % 7)) for x in range(1000)]
    thinned = thin(points, 100)
    assert len(thinned) == 100
    assert sum(y for _, y in thinned) / 100 == pytest.approx(sum(y for _, y in points) / 1000)
    assert thin(points[:50], 100) == points[:50]


def chart(*lines: Line, marked: tuple[float, float] | None = None) -> ElementTree.Element:
    html = line_chart(lines, title="a & b", x_label="images", marked=marked)
    return ElementTree.fromstring(html)


def test_a_line_goes_down_where_the_values_do() -> None:
    figure = chart(Line("loss", [(0, 4.0), (10, 2.0), (20, 1.0)]))
    path = figure.find(".//polyline")
    assert path is not None
    places = [tuple(map(float, pair.split(","))) for pair in path.attrib["points"].split()]
    assert [x for x, _ in places] == sorted(x for x, _ in places)
    heights = [y for _, y in places]
    assert heights == sorted(heights)
    assert heights[1] - heights[0] == pytest.approx(2 * (heights[2] - heights[1]), abs=0.3)


def test_what_is_not_finite_is_left_out() -> None:
    figure = chart(Line("loss", [(0, 1.0), (1, math.nan), (2, math.inf), (3, 2.0)]))
    path = figure.find(".//polyline")
    assert path is not None
    assert len(path.attrib["points"].split()) == 2
    assert line_chart([Line("x", [(0, math.nan)])], title="t", x_label="x") == ""


def test_names_are_escaped_and_several_lines_have_a_legend() -> None:
    figure = chart(Line("<real>", [(0, 1.0)]), Line("fake", [(0, 2.0)]))
    assert [entry.findtext(".", "") for entry in figure.iter("li")] == ["", ""]
    assert ["".join(entry.itertext()) for entry in figure.iter("li")] == ["<real>", "fake"]
    assert figure.findtext("h3") == "a & b"


def test_the_best_point_is_marked_at_its_place() -> None:
    figure = chart(Line("FID", [(0, 9.0), (5, 3.0), (10, 4.0)]), marked=(5.0, 3.0))
    mark = next(c for c in figure.iter("circle") if c.get("class") == "mark")
    path = figure.find(".//polyline")
    assert path is not None
    assert f"{mark.attrib['cx']},{mark.attrib['cy']}" == path.attrib["points"].split()[1]
    assert "best 3" in "".join(figure.itertext())


def test_text_stays_inside_the_picture() -> None:
    html = line_chart([Line("a", [(0, 0.0), (1e6, 1e-3)])], title="t", x_label="x")
    box = [float(value) for value in re.findall(r'viewBox="0 0 (\d+) (\d+)"', html)[0]]
    for x, y in re.findall(r'<text class="\w+" x="([\d.]+)" y="([\d.]+)"', html):
        assert 0 <= float(x) <= box[0]
        assert 0 <= float(y) <= box[1]


def test_numbers_are_written_as_people_read_them() -> None:
    assert [short(value) for value in (0, 0.04, 950, 12_500, 3e6)] == [
        "0", "0.04", "950", "12.5k", "3M",
    ]  # fmt: skip
    assert [score(value) for value in (33.123, 0.0421369, 512.34)] == ["33.12", "0.04214", "512.3"]
    assert [duration(value) for value in (0, 45, 4980, 183_600, 3600)] == [
        "0 s", "45 s", "1 h 23 min", "2 d 3 h", "1 h",
    ]  # fmt: skip
