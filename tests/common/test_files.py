"""Files are whole or not there."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from t2i_hpc.common.files import (
    append_json_line,
    atomic_writer,
    read_json_lines,
    sha256_of_file,
    sha256_of_json,
    size_text,
    write_json,
    write_text,
)


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "file"
    write_text(path, "old")
    with pytest.raises(RuntimeError), atomic_writer(path) as stream:
        stream.write(b"half of the n")
        raise RuntimeError
    assert path.read_text() == "old"
    assert list(path.parent.iterdir()) == [path]


def test_half_a_last_line_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    append_json_line(path, {"a": 1})
    append_json_line(path, {"a": "ü"})
    with path.open("a") as stream:
        stream.write('{"a": 3')
    assert read_json_lines(path) == [{"a": 1}, {"a": "ü"}]
    assert read_json_lines(tmp_path / "none.jsonl") == []
    append_json_line(path, {"a": 4})
    append_json_line(path, {"a": 5})
    assert read_json_lines(path) == [{"a": 1}, {"a": "ü"}, {"a": 4}, {"a": 5}]


def test_hashes(tmp_path: Path) -> None:
    path = tmp_path / "value.json"
    write_json(path, {"b": 1, "a": [2]})
    assert sha256_of_file(path) == hashlib.sha256(path.read_bytes()).hexdigest()
    assert sha256_of_json({"b": 1, "a": 2}) == sha256_of_json({"a": 2, "b": 1})
    assert sha256_of_json({"a": 1}) != sha256_of_json({"a": 2})


def test_lines_end_at_line_feeds_alone(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    rows = [{"said": f"one{sign}two"} for sign in "\x85\u2028\u2029\v\f\x1c\x1d\x1e\r\n"]
    for row in rows:
        append_json_line(path, row)
    with path.open("ab") as stream:
        stream.write('{"said": "é'.encode()[:-1])  # a power cut inside a character
    assert read_json_lines(path) == rows


@pytest.mark.parametrize(
    ("count", "text"),
    [(300, "300 bytes"), (2500, "2.5 kB"), (2_550_000, "2.55 MB"), (1_200_000_000, "1.2 GB")],
)
def test_sizes_never_round_to_nothing(count: int, text: str) -> None:
    assert size_text(count) == text
