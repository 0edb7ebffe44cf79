"""The last lines of files that may be long: curves, logs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

_TAIL_BYTES = 1 << 16
_ERRORS = ("t2i_hpc.", "t2i_hpc: ", "sbatch: error", "slurmstepd: error")


def last_row(path: Path) -> dict[str, Any]:
    """Return the last whole row of a .jsonl file, nothing where there is none."""
    for line in reversed(_tail(path)):
        try:
            row = json.loads(line)
        except ValueError:  # half written, or cut by where the tail begins
            continue
        if isinstance(row, dict):
            return row
    return {}


def last_error(path: Path) -> str:
    """Return the last line of a log that tells of an error, else its last line."""
    lines = [line.strip() for line in _tail(path) if line.strip()]
    told = [line for line in lines if line.startswith(_ERRORS) or "Error: " in line]
    return (told or lines or [""])[-1]


def _tail(path: Path) -> list[str]:
    try:
        with path.open("rb") as stream:
            size = stream.seek(0, 2)
            stream.seek(max(0, size - _TAIL_BYTES))
            return stream.read().decode(errors="replace").splitlines()
    except OSError:
        return []
