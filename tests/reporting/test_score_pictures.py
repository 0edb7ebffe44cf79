"""The page's scores with error bars, the best checkpoint, pictures of copies and of diversity."""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from t2i_hpc.common.files import append_json_line
from t2i_hpc.evaluation.scores import DIVERSITY, NEAREST, score_curves
from t2i_hpc.reporting.charts import Line, line_chart
from t2i_hpc.reporting.page import render, score_section, score_table
from t2i_hpc.reporting.results import read_results
from t2i_hpc.reporting.results_text import to_csv, to_markdown
from t2i_hpc.reporting.run_record import RunRecord
from t2i_hpc.sampling.grids import picture_grid, save_picture
from tests.reporting.made_up import make_run, random_pictures, score_row


def _vertical(drawn: ElementTree.Element) -> tuple[float, float, float]:
    """Return x, and the two ends of an error bar."""
    path = drawn.find("path")
    assert path is not None
    x, top, same, bottom = map(float, re.findall(r"[-\d.]+", path.attrib["d"]))
    assert x == same
    return x, top, bottom


def test_error_bars_stand_around_their_points() -> None:
    points = [(0.0, 4.0), (10.0, 2.0), (20.0, 1.0)]
    line = Line("KID", points, [1.0, None, 0.5])
    figure = ElementTree.fromstring(line_chart([line], title="t", x_label="x"))
    bars = [_vertical(bar) for bar in figure.findall(".//g[@class='bar']")]
    lengths = [abs(top - bottom) for _, top, bottom in bars]
    assert len(bars) == 2
    assert lengths[0] == pytest.approx(2 * lengths[1], abs=0.2)
    assert Line("KID", [(0.0, float("nan")), *points], [9.0, 1.0, None, 0.5]).drawn() == line


def test_the_best_checkpoint_and_what_real_images_get_stand_in_words() -> None:
    halves = {"real_halves": {"distance": 2.0, "protocol": "0" * 12}}
    rows = [{**score_row(n, value), **halves} for n, value in ((1000, 30.0), (2000, 45.0))]
    section = score_section(score_curves(rows))
    assert "Best checkpoint: 30 after 1,000 training images (ffffffffffff)." in section
    assert "Real images have a distance of 2 from other real images." in section
    assert "30 (15 x real halves)" in score_table(score_curves(rows))


def test_tables_say_how_many_times_the_distance_of_real_images_it_is(tmp_path: Path) -> None:
    halves = {"real_halves": {"distance": 2.0, "protocol": "0" * 12}}
    for name, more in (("known", halves), ("not-known", {})):
        append_json_line(tmp_path / name / "scores.jsonl", {**score_row(1000, 30.0), **more})
    results = read_results([str(tmp_path / "known"), str(tmp_path / "not-known")])
    assert to_markdown(results).count("30 (15 x real halves)") == 1
    with_it, without = csv.DictReader(io.StringIO(to_csv(results)))
    title = results.measures[0].title
    assert (with_it[title], with_it[f"{title} over real halves"]) == ("30.0", "15.0")
    assert (without[title], without[f"{title} over real halves"]) == ("30.0", "")


def test_pictures_that_scores_come_with_are_shown(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", steps=1, grids=1, scores=1)
    for kind in (NEAREST, DIVERSITY):
        save_picture(picture_grid(random_pictures(4, 1), 2), run / kind / "0000002000.png")
    html = render(RunRecord.read(run))
    for title in ("Nearest training images", "Images of one caption"):
        assert f"<h2>{title}</h2>" in html
        assert f'alt="{title} after 2,000 images"' in html


def test_a_script_offers_each_chart_picture_and_the_scores_as_a_file(tmp_path: Path) -> None:
    html = render(RunRecord.read(make_run(tmp_path / "run")))
    for place in (".chart", ".frames img", ".all-scores table"):
        assert f'querySelectorAll("{place}")' in html
    # What the script puts in place of a page's colors is how charts write them.
    assert re.search(r"var\(--[a-z0-9-]+, #[0-9a-f]{6}\)", html)
