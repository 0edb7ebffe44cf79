"""What is kept of a submission, and where it may lie."""

from __future__ import annotations

import json
import subprocess
from importlib.metadata import version
from pathlib import Path

import pytest

from t2i_hpc.cluster.shared_folder import check_shared, file_system
from t2i_hpc.cluster.snapshot import Snapshot
from t2i_hpc.common.errors import ClusterError


def test_code_packages_and_configuration_are_kept(tmp_path: Path) -> None:
    snapshot = Snapshot.take("seed: 1\n")
    snapshot.write(tmp_path, "12")
    kept = json.loads((tmp_path / "12_code.json").read_text())
    assert kept["packages"]["torch"] == version("torch")
    assert (tmp_path / "12_config.yaml").read_text() == "seed: 1\n"
    here = Path(__file__).parent
    head = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, check=False
    )
    assert kept["commit"] == head.stdout.strip()


def test_changes_of_the_code_are_kept(tmp_path: Path) -> None:
    Snapshot("abc", "--- a\n+++ b\n", {}, "").write(tmp_path, "3")
    assert (tmp_path / "3_changes.diff").read_text() == "--- a\n+++ b\n"
    Snapshot("abc", "", {}, "").write(tmp_path, "4")
    assert not (tmp_path / "4_changes.diff").exists()


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="this machine has no /dev/shm")
def test_memory_is_no_shared_folder() -> None:
    assert file_system(Path("/dev/shm/not/there")) == "tmpfs"
    with pytest.raises(ClusterError, match=r"lies in the memory of this machine \(tmpfs\)"):
        check_shared(Path("/dev/shm/runs"))
    check_shared(Path(__file__).parent)
