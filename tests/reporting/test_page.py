"""The page: whole in itself, escaped, and there with whatever parts a run has."""

from __future__ import annotations

import base64
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from t2i_hpc.reporting.overview import overview
from t2i_hpc.reporting.page import data_uri, render, spread
from t2i_hpc.reporting.run_record import Frame, RunRecord
from t2i_hpc.sampling.grids import PICTURES_LEFT, picture_grid, save_picture
from tests.reporting.made_up import add_grids, make_run

VOID = {"meta", "img", "input", "br"}


class Balance(HTMLParser):
    """Collects attributes that load something, text, headings, and whether tags are balanced."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.sources: list[str] = []
        self.headings: list[str] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)
        self.note_sources(attrs)

    def note_sources(self, attrs: list[tuple[str, str | None]]) -> None:
        """Note what a tag loads; "#…" is a part of the page."""
        found = [value or "" for name, value in attrs if name in ("src", "href")]
        self.sources += [value for value in found if not value.startswith("#")]

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.note_sources(attrs)

    def handle_data(self, data: str) -> None:
        self.text += data
        if self.open and self.open[-1] == "h2":
            self.headings.append(data)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return make_run(tmp_path / "run")


def test_the_page_has_every_part_and_is_balanced(run: Path) -> None:
    page = Balance(render(RunRecord.read(run)))
    assert page.open == []
    assert page.headings == [
        "Samples over time",
        "Score over training",
        "Semantic masks",
        "Losses",
        "Gradients",
        "Speed",
        "Time by phase",
        "How it was made",
    ]


def test_the_page_loads_nothing_from_elsewhere(run: Path) -> None:
    html = render(RunRecord.read(run))
    page = Balance(html)
    assert len(page.sources) == 6
    assert all(source.startswith("data:image/") for source in page.sources)
    assert not re.search(r"https?://|url\(|@import|<link", html)


def test_pictures_are_in_the_page_bit_for_bit(run: Path) -> None:
    source = Balance(render(RunRecord.read(run))).sources[0]
    content = base64.b64decode(source.split(",", 1)[1])
    assert content == (run / "samples" / "0000000000.png").read_bytes()


def test_without_scripts_all_pictures_are_shown_and_the_slider_is_not(run: Path) -> None:
    html = render(RunRecord.read(run))
    assert html.count('<div class="slider" hidden>') == 2
    assert not re.search(r"<(figure|img)[^>]* hidden", html)


def test_text_of_the_run_is_escaped(run: Path) -> None:
    html = render(RunRecord.read(run))
    assert "<script>alert" not in html
    assert "<b>star</b>" not in html
    assert "a square & a <b>star</b>" in Balance(html).text


def test_the_headline_has_the_best_score_with_its_n_and_the_caution(run: Path) -> None:
    text = Balance(render(RunRecord.read(run))).text
    assert "30FD (EfficientNet-Lite0), 1,157 images against 1,157, best of the run" in text
    assert "it is not FID and not comparable with published FID" in text
    assert "4,000images seen in training" in text


def test_norms_and_times_stand_in_tables_too(run: Path) -> None:
    text = Balance(render(RunRecord.read(run))).text
    assert "discriminator/discriminator1.51.50.0004" in text
    assert "generator30.030.0 %" in text


@pytest.mark.parametrize(
    ("missing", "heading"),
    [
        ("scores", "Score over training"),
        ("samples", "Samples over time"),
        ("masks", "Semantic masks"),
        ("metrics", "Losses"),
        ("metrics", "Gradients"),
        ("metrics", "Time by phase"),
    ],
)
def test_a_missing_part_is_left_out(run: Path, missing: str, heading: str) -> None:
    for path in [*(run / missing).glob("*"), *run.glob(f"{missing}.jsonl")]:
        path.unlink()
    record = RunRecord.read(run)
    page = Balance(render(record))
    assert page.open == []
    assert heading not in page.headings
    assert len(page.headings) >= 4
    assert overview(record).width > 100


def test_a_run_that_has_only_begun_is_shown(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", steps=1, grids=1, scores=1)
    (run / "run.json").unlink()
    page = Balance(render(RunRecord.read(run)))
    assert "run" in page.text
    assert "Score over training" in page.headings


def test_of_many_grids_the_first_the_last_and_some_between_are_shown(tmp_path: Path) -> None:
    frames = [Frame(images, tmp_path) for images in range(100)]
    shown = [frame.images for frame in spread(frames, 5)]
    assert shown == [0, 25, 50, 74, 99]
    assert spread(frames[:3], 5) == frames[:3]


def test_large_grids_are_shown_smaller(tmp_path: Path) -> None:
    noise = torch.randint(0, 256, (32, 3, 256, 256), dtype=torch.uint8)
    save_picture(picture_grid(noise, 8), tmp_path / "0000000000.png")
    uri = data_uri(Frame(0, tmp_path / "0000000000.png"))
    assert uri.startswith("data:image/webp;base64,")
    assert len(uri) < (tmp_path / "0000000000.png").stat().st_size


def test_the_overview_shows_first_and_last_side_by_side(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", grids=0, scores=0)
    for images in (0, 500, 9000):
        add_grids(run, images)
    record = RunRecord.read(run)
    with Image.open(record.samples[0].path) as first, Image.open(record.samples[-1].path) as last:
        left = int(last.info[PICTURES_LEFT])
        pictures = np.asarray(last.convert("RGB"))[:, left:]
        whole = np.asarray(first.convert("RGB"))
    drawn = np.asarray(overview(record))
    assert contains(drawn, whole)
    assert contains(drawn, pictures)
    assert drawn.shape[1] < 2 * whole.shape[1]  # captions stand there once


def contains(canvas: np.ndarray, part: np.ndarray) -> bool:
    """Say whether `part` stands somewhere in `canvas`, pixel by pixel."""
    height, width = part.shape[:2]
    places = np.argwhere((canvas[: -height + 1, : -width + 1] == part[0, 0]).all(axis=2))
    return any(
        np.array_equal(canvas[top : top + height, left : left + width], part)
        for top, left in places
    )


def test_a_wide_overview_is_scaled_down(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", grids=0)
    for images in (0, 100):
        wide = torch.zeros(12, 3, 128, 128, dtype=torch.uint8)
        save_picture(picture_grid(wide, 12), run / "samples" / f"{images:010d}.png")
    assert overview(RunRecord.read(run)).width <= 1700
