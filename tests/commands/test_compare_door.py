"""The door `compare`: one table for each metric and protocol, published numbers labelled so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from t2i_hpc.common.files import append_json_line
from t2i_hpc.compare import COMMAND


def _score(run: Path, metric: str, value: float, **changes: Any) -> None:
    row = {
        "images": 1000,
        "metric": metric,
        "value": value,
        "std": None,
        "better": "lower",
        "n": 30_000,
        "n_real": 2_933,
        "protocol": "abc123def456",
        "protocol_name": "literature_cub",
        "checkpoint": "c" * 64,
    }
    append_json_line(run / "scores.jsonl", row | changes)


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    first, second = tmp_path / "first", tmp_path / "second"
    for images, value in ((1000, 30.0), (2000, 20.0), (3000, 25.0)):
        _score(first, "FID (literature)", value, images=images)
    _score(second, "FID (literature)", 18.5)
    _score(second, "FID (literature)", 11.5, protocol="another00000")
    _score(second, "R-precision", 0.7, std=0.01, better="higher", n_real=0)
    return [first, second]


def _words(runs: list[Path], *more: str) -> list[str]:
    return [*map(str, runs), *more]


def test_protocols_are_never_put_in_one_table(
    runs: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert COMMAND.main(_words(runs, "metric=FID")) == 0
    tables = capsys.readouterr().out.split("\n\n")
    assert len(tables) == 2
    both = next(table for table in tables if "abc123def456" in table).splitlines()
    assert both[0].startswith("FID (literature), N = 30,000 against 2,933, protocol literature_cub")
    assert [line.split()[0] for line in both[1:3]] == ["second", "first"]
    assert "20  after 2,000 images" in both[2]
    assert "11.5" not in "".join(both[:3])


def test_published_numbers_are_labelled_and_of_the_same_network(
    runs: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert COMMAND.main(_words(runs[:1])) == 0
    out = capsys.readouterr().out
    head, _, stated = out.partition("published, not reproduced here:")
    assert "16.09" not in head
    assert "16.09" in stated
    assert "19.78" not in out  # of how many images is not stated
    assert "14.01" not in out  # TensorFlow's network
    assert COMMAND.main(_words(runs[:1], "published=false")) == 0
    assert "published" not in capsys.readouterr().out


def test_json_says_the_same(runs: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert COMMAND.main(_words(runs[1:], "metric=R", "json=true")) == 0
    (column,) = json.loads(capsys.readouterr().out)
    assert column["measured"] == [{"run": "second", "images": 1000, "value": 0.7, "std": 0.01}]
    best = column["published_not_reproduced"][0]
    assert (best["system"], best["value"]) == ("DM-GAN (released)", 0.7658)
    assert COMMAND.main([f"run={runs[1]}", "metric=R"]) == 0
    assert "70 ± 1 %" in capsys.readouterr().out


def test_refusals(runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words, sentence in (
        ([], "no runs are named"),
        (_words([tmp_path / "nothing"]), "there is no folder"),
        (_words(runs[:1], "metric=KID"), "has no scores of 'KID' yet"),
    ):
        assert COMMAND.main(words) == 2
        assert sentence in capsys.readouterr().err
