"""Where a session writes and speaks."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from t2i_hpc.engine.progress import ProgressLine


@dataclass(frozen=True)
class RunFiles:
    """A run directory and the line that tells people about it."""

    folder: Path
    line: ProgressLine
