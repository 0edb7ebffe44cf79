"""Slurm's clients as a test wants them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cluster.clients import Clients


@pytest.fixture
def clients(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Clients:
    return Clients(tmp_path / "bin", monkeypatch)
