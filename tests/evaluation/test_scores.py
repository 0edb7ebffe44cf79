"""Rows of scores.jsonl: complete, and written once."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from t2i_hpc.common.files import read_json_lines
from t2i_hpc.evaluation.metrics import Value
from t2i_hpc.evaluation.scores import few_images_warning, record_score, score_line, score_row
from tests.evaluation.fakes import FakeDetector
from tests.evaluation.test_protocol import PROTOCOL


def _row(value: float = 12.5, images_seen: int = 2000, std: float | None = None) -> dict[str, Any]:
    score = Value("FD (fake)", value, std, "lower", 900)
    return score_row(
        score,
        PROTOCOL,
        FakeDetector.identity,
        name="mine",
        checkpoint="c" * 64,
        images_seen=images_seen,
        made_with=[{"device": "a GPU", "torch": "2.9"}],
    )


def test_a_row_says_all(tmp_path: Path) -> None:
    assert record_score(tmp_path, _row(std=0.5))
    assert read_json_lines(tmp_path / "scores.jsonl") == [
        {
            "images": 2000,
            "metric": "FD (fake)",
            "value": 12.5,
            "std": 0.5,
            "better": "lower",
            "n": 1000,
            "n_real": 900,
            "protocol": PROTOCOL.hash_of("fid"),
            "protocol_name": "mine",
            "protocol_text": PROTOCOL.text_of("fid"),
            "checkpoint": "c" * 64,
            "detector_label": "a fake",
            "made_with": [{"device": "a GPU", "torch": "2.9"}],
        }
    ]


def test_the_same_score_is_written_once(tmp_path: Path) -> None:
    assert [record_score(tmp_path, _row()) for _ in range(3)] == [True, False, False]
    assert not record_score(tmp_path, _row(12.5 * (1 + 1e-8)))
    assert record_score(tmp_path, _row(12.6))
    assert record_score(tmp_path, _row(images_seen=3000))
    values = [row["value"] for row in read_json_lines(tmp_path / "scores.jsonl")]
    assert values == [12.5, 12.6, 12.5]


def test_merges_at_once_write_a_score_once(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        for images in range(20):
            rows = [_row(images_seen=images)] * 8
            written = list(pool.map(partial(record_score, tmp_path), rows))
            assert written.count(True) == 1
    assert len(read_json_lines(tmp_path / "scores.jsonl")) == 20


def test_the_line_for_people_names_n_and_protocol() -> None:
    line = score_line(_row())
    for word in ("FD (fake) 12.5000 after 2,000 images", "N 1,000", "N real 900", "a fake"):
        assert word in line
    assert f"protocol mine {PROTOCOL.hash_of('fid')}" in line
    assert "±" not in line


def test_the_line_has_an_error_bar_and_leaves_out_what_there_is_not() -> None:
    line = score_line({**_row(std=0.25, images_seen=0), "n_real": 0})
    assert "12.5000 ± 0.2500  [N 1,000, protocol" in line


def test_r_precision_is_printed_in_percent_as_papers_state_it() -> None:
    row = {**_row(std=0.0443), "metric": "R-precision", "value": 0.6782, "n_real": 0}
    assert score_line(row).startswith("R-precision 67.8200 ± 4.4300 %")


def test_small_n_is_warned_of_in_either_image_set() -> None:
    many = replace(PROTOCOL, images=30_000, real_images=10_000)
    assert few_images_warning(many) is None
    few = few_images_warning(replace(many, real_images=2_933)) or ""
    assert "N real = 2,933 is small" in few
    assert "not comparable" in few
    assert "N = 9,999 and N real = 900 are small" in (
        few_images_warning(replace(PROTOCOL, images=9_999)) or ""
    )
