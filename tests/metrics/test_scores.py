"""Rows of scores.jsonl: complete, and written once."""

from __future__ import annotations

from pathlib import Path

from t2i_hpc.common.files import read_json_lines
from t2i_hpc.metrics.scores import few_images_warning, record_score, score_line, score_row
from tests.metrics.fakes import FakeDetector
from tests.metrics.test_protocol import PROTOCOL


def _row(value: float = 12.5, images_seen: int = 2000) -> dict[str, object]:
    return score_row(value, PROTOCOL, FakeDetector(), checkpoint="c" * 64, images_seen=images_seen)


def test_a_row_says_all(tmp_path: Path) -> None:
    assert record_score(tmp_path, _row())
    assert read_json_lines(tmp_path / "scores.jsonl") == [
        {
            "images": 2000,
            "metric": "FD (fake)",
            "value": 12.5,
            "better": "lower",
            "n": 1000,
            "n_real": 900,
            "protocol": PROTOCOL.hash,
            "protocol_text": PROTOCOL.as_dict(),
            "checkpoint": "c" * 64,
            "detector_label": "a fake",
        }
    ]


def test_the_same_score_is_written_once(tmp_path: Path) -> None:
    assert [record_score(tmp_path, _row()) for _ in range(3)] == [True, False, False]
    assert not record_score(tmp_path, _row(12.5 * (1 + 1e-8)))
    assert record_score(tmp_path, _row(12.6))
    assert record_score(tmp_path, _row(images_seen=3000))
    values = [row["value"] for row in read_json_lines(tmp_path / "scores.jsonl")]
    assert values == [12.5, 12.6, 12.5]


def test_the_line_for_people_names_n_and_protocol() -> None:
    line = score_line(_row())
    for word in ("FD (fake) 12.5000", "2,000", "N 1,000", "N real 900", PROTOCOL.hash, "a fake"):
        assert word in line


def test_small_n_is_warned_of() -> None:
    assert "not comparable" in (few_images_warning(9_999) or "")
    assert few_images_warning(10_000) is None
