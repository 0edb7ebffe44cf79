"""What is kept of a submission, and on which file systems."""

from __future__ import annotations

import json
import subprocess
from importlib.metadata import version
from pathlib import Path

import pytest

from t2i_hpc.cluster.jobs import JobRecord, forget_job, read_jobs, record_jobs
from t2i_hpc.cluster.slurm.submission import Snapshot
from t2i_hpc.cluster.slurm.validation import check_shared, file_system
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
    with pytest.raises(ClusterError, match=r"is in the memory of this machine \(tmpfs\)"):
        check_shared(Path("/dev/shm/runs"))
    check_shared(Path(__file__).parent)


def test_each_job_has_a_file_of_its_own(tmp_path: Path) -> None:
    """Elements of an array are recorded by several nodes in the same second."""
    made = {
        job: JobRecord(job, "x", "train", ("seed=1",), "runs/x", "log", {}, "2026", after=("1",))
        for job in ("10", "9_0", "9_11", "9_2")
    }
    record_jobs(tmp_path, [made["10"], made["9_11"], made["9_0"]])
    record_jobs(tmp_path, [made["9_2"]])
    assert len(list((tmp_path / "jobs/records").iterdir())) == 4
    assert read_jobs(tmp_path) == [made[job] for job in ("9_0", "9_2", "9_11", "10")]


def test_a_job_that_is_withdrawn_leaves_nothing_but_logs(tmp_path: Path) -> None:
    jobs = tmp_path / "jobs"
    jobs.mkdir()
    names = ("5_submission.sh", "5_submitted.pkl", "5_code.json", "5_config.yaml", "5_changes.diff")
    for name in (*names, "5_0_log.out", "55_code.json", "starts-5.jsonl"):
        (jobs / name).touch()
    record_jobs(tmp_path, [JobRecord("5", "x", "train", (), "runs/x", "log", {}, "now")])
    forget_job(tmp_path, "5")
    assert read_jobs(tmp_path) == []
    left = {path.name for path in jobs.iterdir() if path.is_file()}
    assert left == {"5_0_log.out", "55_code.json", "starts-5.jsonl"}
