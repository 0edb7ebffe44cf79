"""Charts: right places, no non-finite points, text escaped, whole in themselves."""

from __future__ import annotations

import math
import re
from xml.etree import ElementTree

import pytest

from t2i_hpc.evaluation.scores import score_text
from t2i_hpc.reporting.charts import Line, line_chart, short, thin
from t2i_hpc.reporting.run_status import duration


def test_thinning_keeps_the_mean() -> None:
    points = [(float(x), float(x % 7)) for x in range(1000)]
    thinned = thin(points, 100)
    assert len(thinned) == 100
    assert sum(y for _, y in thinned) / 100 == pytest.approx(sum(y for _, y in points) / 1000)
    assert thin(points[:50], 100) == points[:50]


def chart(*lines: Line, marked: tuple[float, float] | None = None) -> ElementTree.Element:
    html = line_chart(lines, title="a & b", x_label="images", marked=marked)
    return ElementTree.fromstring(html)


def places(figure: ElementTree.Element) -> list[tuple[float, float]]:
    """Return the pixels of the first line's points."""
    path = figure.find(".//g[@class='line']/path")
    assert path is not None
    numbers = [float(number) for number in re.findall(r"[-\d.]+", path.attrib["d"])]
    return list(zip(numbers[::2], numbers[1::2], strict=True))


def test_a_line_goes_down_where_the_values_do() -> None:
    found = places(chart(Line("loss", [(0, 4.0), (10, 2.0), (20, 1.0)])))
    assert [x for x, _ in found] == sorted(x for x, _ in found)
    heights = [y for _, y in found]
    assert heights == sorted(heights)
    assert heights[1] - heights[0] == pytest.approx(2 * (heights[2] - heights[1]), abs=0.3)


def test_non_finite_points_are_left_out() -> None:
    figure = chart(Line("loss", [(0, 1.0), (1, math.nan), (2, math.inf), (3, 2.0)]))
    assert len(places(figure)) == 2
    assert line_chart([Line("x", [(0, math.nan)])], title="t", x_label="x") == ""


def test_names_are_escaped_and_several_lines_have_a_legend() -> None:
    figure = chart(Line("<real>", [(0, 1.0)]), Line("fake_$x$", [(0, 2.0)]))
    assert ["".join(entry.itertext()) for entry in figure.iter("li")] == ["<real>", "fake_$x$"]
    assert figure.findtext("h3") == "a & b"
    drawn = ElementTree.fromstring(line_chart([Line("l", [(0, 1)])], title="t", x_label="$a < b$"))
    assert "$a < b$" in "".join(drawn.itertext())


def test_the_best_point_is_marked_at_its_place() -> None:
    figure = chart(Line("FID", [(0, 9.0), (5, 3.0), (10, 4.0)]), marked=(5.0, 3.0))
    mark = figure.find(".//g[@class='mark']//use")
    assert mark is not None
    assert (float(mark.attrib["x"]), float(mark.attrib["y"])) == places(figure)[1]
    assert "best 3" in "".join(figure.itertext())


def test_text_stays_inside_the_picture() -> None:
    html = line_chart([Line("a", [(0, 0.0), (1e6, 1e-3)])], title="t", x_label="x")
    width, height = map(float, re.findall(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', html)[0])
    texts = re.findall(r'<text [^>]*x="([\d.]+)" y="([\d.]+)"', html)
    assert len(texts) > 6
    for x, y in texts:
        assert 0 <= float(x) <= width
        assert 0 <= float(y) <= height


def test_a_chart_is_the_same_bytes_and_reaches_nothing_outside_itself() -> None:
    html, again = (
        line_chart([Line("a", [(0, 1.0), (9, 2.0)])], title="t", x_label="x", from_zero=True)
        for _ in range(2)
    )
    assert html == again
    assert not re.search(r"https?:|url\(|<style|<script|font-family", html)
    # Each color has a variable of the page, which is another one in the dark.
    assert not re.search(r"#[0-9a-f]{6}", re.sub(r"var\([^)]*\)", "", html))
    assert len(html) < 8_000


def test_numbers_are_written_as_people_read_them() -> None:
    assert [short(value) for value in (0, 0.04, 950, 12_500, 3e6)] == [
        "0", "0.04", "950", "12.5k", "3M",
    ]  # fmt: skip
    assert [score_text(value) for value in (33.123, 0.0421369, 512.34)] == [
        "33.12",
        "0.04214",
        "512.3",
    ]
    assert [duration(value) for value in (0, 45, 4980, 183_600, 3600)] == [
        "0 s", "45 s", "1 h 23 min", "2 d 3 h", "1 h",
    ]  # fmt: skip
