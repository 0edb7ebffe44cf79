"""A run whose path has what Slurm takes for a pattern."""

from __future__ import annotations

from pathlib import Path

from tests.slurm.jobs import launch, launched, wait_until
from tests.slurm.lab import Lab


def test_the_log_is_where_the_record_says(lab: Lab, tmp_path: Path) -> None:
    folder = tmp_path / "50%j" / "100%a"
    arguments = ("task=shards", f"images={tmp_path}", f"output={folder}")
    images = tmp_path / "one.png"
    images.write_bytes(b"no picture")  # the task fails at once: its log is all that counts
    dry = launch(lab, *arguments, "cluster.dry_run=true")
    assert dry.code == 0, dry.err
    (line,) = [each for each in dry.out.splitlines() if each.startswith("#SBATCH --output")]
    assert line.count("%") == 1
    assert not list(tmp_path.glob(".t2i_hpc-*"))
    (record,) = launched(lab, tmp_path, *arguments)
    assert record.log == str(folder / "jobs" / f"{record.job}_0_log.out")
    log = Path(record.log)
    wait_until(lambda: log.exists() and "t2i_hpc.shards: " in log.read_text(), "the task's output")
    assert {path.name for path in tmp_path.iterdir() if path.is_dir()} >= {"50%j"}
    assert not (tmp_path / f"50{record.job}").exists()
