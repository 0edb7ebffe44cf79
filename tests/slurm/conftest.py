"""The lab of the Slurm tests: one for all tests of a process."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from t2i_hpc.cluster.slurm.client import Pace
from tests.slurm.jobs import PATIENCE
from tests.slurm.lab import Lab, missing, started


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let the waits of these tests, which say what was awaited, end before pytest's own."""
    for item in items:
        if item.path.parent == Path(__file__).parent:
            item.add_marker(pytest.mark.timeout(4 * PATIENCE))


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ask the lab's Slurm more often than a site would like."""
    monkeypatch.setattr("t2i_hpc.cluster.slurm.client.PACE", Pace(0.5, 1.0))


@pytest.fixture(scope="session")
def lab() -> Iterator[Lab]:
    reason = missing()
    if reason:
        (pytest.fail if os.environ.get("SLURM_TESTS") == "required" else pytest.skip)(reason)
    # Sockets have short names: a folder of pytest's would be too deep.
    folder = Path(tempfile.mkdtemp(prefix="lab"))
    try:
        with started(folder) as running:
            yield running
    finally:
        shutil.rmtree(folder, ignore_errors=True)
