"""The command `table`: best scores in columns by protocol, published numbers labelled so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from t2i_hpc.common.files import append_json_line
from t2i_hpc.table import COMMAND


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


def _table(
    capsys: pytest.CaptureFixture[str], runs: list[Path], *settings: str
) -> list[dict[str, str]]:
    """Return the table's rows by its heads, and what stands below it."""
    assert COMMAND.main([*map(str, runs), *settings]) == 0
    lines = capsys.readouterr().out.split("\n\n")[0].splitlines()
    head, _, *rows = ([cell.strip() for cell in line.split("|")[1:-1]] for line in lines)
    assert len(set(head)) == len(head) - head.count("at images") + 1
    return [dict(zip(head, row, strict=True)) for row in rows]


def test_protocols_never_share_a_column(
    runs: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = _table(capsys, runs, "metric=FID", "best=true")
    head = "FID (literature) ↓ (N 30,000, N real 2,933, protocol literature_cub {})"
    assert [row[head.format("abc123def456")] for row in (first, second)] == ["20", "18.5"]
    assert [row[head.format("another00000")] for row in (first, second)] == ["", "11.5"]
    assert not any("R-precision" in title for title in first)
    assert (first["run"], first["state"]) == ("first", "no run")  # image files that were scored


def test_the_newest_scores_unless_the_best_are_asked_for(
    runs: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert {"25", "3,000"} <= set(_table(capsys, runs[:1])[0].values())
    assert {"20", "2,000"} <= set(_table(capsys, runs[:1], "best=true")[0].values())


def test_published_numbers_are_labelled_and_of_the_same_network(
    runs: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert COMMAND.main([str(runs[0]), "published=true"]) == 0
    out = capsys.readouterr().out
    head, _, stated = out.partition("published, not reproduced here:")
    assert "16.09" not in head
    assert "16.09" in stated
    assert "19.78" not in out  # of how many images is not stated
    assert "14.01" not in out  # TensorFlow's network
    assert COMMAND.main([str(runs[0])]) == 0
    assert "published" not in capsys.readouterr().out
    _score(runs[0], "FID (literature)", 9.0, n=100)
    assert COMMAND.main([str(runs[0]), "metric=FID", "published=true"]) == 0
    assert capsys.readouterr().out.count("published, not reproduced here:") == 1


def test_it_says_so_where_no_published_number_is_of_the_same_kind(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _score(tmp_path / "run", "FID (literature)", 30.0, n=100)
    assert COMMAND.main([str(tmp_path / "run"), "published=true"]) == 0
    assert "No published number has the same" in capsys.readouterr().out


def test_json_says_the_same(runs: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    settings = ("metric=R", "format=json", "best=true", "published=true")
    assert COMMAND.main([str(runs[1]), *settings]) == 0
    table = json.loads(capsys.readouterr().out)
    assert [row["run"] for row in table["rows"]] == ["second"]
    (column,) = table["scores"]
    assert column["measured"] == [{"run": "second", "images": 1000, "value": 0.7, "std": 0.01}]
    best = column["published_not_reproduced"][0]
    assert (best["system"], best["value"]) == ("DM-GAN (released)", 0.7658)
    assert COMMAND.main([*map(str, runs), "format=json", "best=true", "metric=FID"]) == 0
    columns = json.loads(capsys.readouterr().out)["scores"]
    both = next(column for column in columns if column["protocol"] == "abc123def456")
    assert [row["run"] for row in both["measured"]] == ["second", "first"]  # the best first
    assert "published_not_reproduced" not in both
    assert COMMAND.main([f"run={runs[1]}", "metric=R"]) == 0
    assert "70 ± 1 %" in capsys.readouterr().out


def test_refusals(runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, sentence in (
        ([], "no runs are named"),
        ([f"{tmp_path}/nothing"], "there is no such folder"),
        ([str(runs[0]), "metric=KID"], "no run has scores of 'KID' yet"),
        ([str(runs[0]), "published=true", "format=csv"], "take format=json"),
    ):
        assert COMMAND.main(arguments) == 2
        assert sentence in capsys.readouterr().err
