"""Lines that several processes append to one file at the same time."""

from __future__ import annotations

import fcntl
import json
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

from t2i_hpc.common.files import append_json_line, read_json_lines


def is_one(row: dict[str, Any]) -> bool:
    return bool(row["value"] == 1)


def test_who_looks_before_appending_waits_for_who_appends(tmp_path: Path) -> None:
    """Two merges that end in the same second write one score, not two."""
    path = tmp_path / "scores.jsonl"
    with ThreadPoolExecutor(1) as other, path.open("ab") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        appended = other.submit(append_json_line, path, {"value": 1}, is_one)
        assert not wait([appended], 0.3).done  # as long as another one holds the lock
        stream.write(json.dumps({"value": 1}).encode() + b"\n")
        stream.flush()
        fcntl.flock(stream, fcntl.LOCK_UN)
        assert not appended.result(30)
    assert read_json_lines(path) == [{"value": 1}]


def test_a_half_written_line_spoils_no_other(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    path.write_text('{"value": 0}\n{"val')
    assert append_json_line(path, {"value": 1}, is_one)
    assert not append_json_line(path, {"value": 1}, is_one)
    assert read_json_lines(path) == [{"value": 0}, {"value": 1}]
