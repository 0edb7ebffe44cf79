"""Stand-ins for Slurm's clients: what they were called with, and prepared answers."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


class Clients:
    """A folder of programs that are the only ones of Slurm that a test sees."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self._calls = folder, folder / "calls"
        folder.mkdir()
        kept = [
            each for each in os.environ["PATH"].split(":") if not (Path(each) / "squeue").exists()
        ]
        (folder / "bash").symlink_to("/bin/bash")
        monkeypatch.setenv("PATH", ":".join([str(folder), *kept]))

    def answer(self, name: str, text: str = "", code: int = 0) -> None:
        """Let a client print something, on stderr if it is to fail."""
        path = self.folder / name
        target = " >&2" if code else ""
        said = "\n".join(f"echo '{line}'{target}" for line in text.splitlines())
        path.write_text(f'#!/bin/bash\necho {name} "$@" >> {self._calls}\n{said}\nexit {code}\n')
        path.chmod(0o755)

    @property
    def calls(self) -> list[str]:
        """Return what was called, with its arguments."""
        return self._calls.read_text().splitlines() if self._calls.exists() else []
