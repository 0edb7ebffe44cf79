"""What is known of the job that this process is in: its record, its work, and its chain.

When the job that this process runs in ends.
"""

from __future__ import annotations

import dataclasses
import os
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from t2i_hpc.cluster.jobs import JobRecord, chain_of, read_jobs
from t2i_hpc.cluster.slurm.client import has_client, run_client
from t2i_hpc.cluster.slurm.starts import Start, progress_of, starts_of
from t2i_hpc.cluster.states import cancelled_jobs
from t2i_hpc.common.errors import ClusterError
from t2i_hpc.config.cluster import ClusterConfig
from t2i_hpc.runs.sessions import job_of


@dataclass(frozen=True)
class KnownJob:
    """A job as its folder knows it.

    Attributes:
        job: its number, ``123`` or ``123_4``.
        restart: how often Slurm had started it before.
        folder: where its submission is recorded.
        work: what its task writes into.
        cluster: its configuration.
        chain: the job and those that it is the successor of, newest first.
        record: its submission; None if a person submitted a script.
    """

    job: str
    restart: int
    folder: Path
    work: Path
    cluster: ClusterConfig
    chain: tuple[str, ...]
    record: JobRecord | None

    @property
    def chains(self) -> bool:
        """Whether another job resumes this one's work."""
        return self.record is not None and self.cluster.on_stop == "chain"

    def progress(self) -> int:
        """Return how far the work is."""
        return progress_of(self.record, self.work, self.chain)

    def starts(self) -> list[Start]:
        """Return the starts of the chain, newest first."""
        return starts_of(self.work, self.chain)

    def was_cancelled(self) -> bool:
        """Whether `t2i_hpc.cancel` was told to end it."""
        cancelled = cancelled_jobs(self.folder) | cancelled_jobs(self.work)
        return bool(cancelled & {self.job, self.job.partition("_")[0]})


def know(folder: Path, patience: float = 0.0) -> KnownJob:
    """Read what is known of this process's job.

    Args:
        folder: where its submission is recorded.
        patience: seconds to wait for that: a job that begins at once may be ahead of its record.
    """
    job = job_of(os.environ)
    records = _records(folder, job, patience)
    record = next((each for each in records if each.job == job), None)
    return KnownJob(
        job,
        int(os.environ.get("SLURM_RESTART_COUNT") or 0),
        folder,
        Path(record.folder) if record else folder,
        _configuration(record.cluster) if record else ClusterConfig(),
        tuple(chain_of(records, job)),
        record,
    )


def _records(folder: Path, job: str, patience: float) -> list[JobRecord]:
    end = time.monotonic() + patience
    records = read_jobs(folder)
    while records and job not in {each.job for each in records} and time.monotonic() < end:
        time.sleep(0.5)
        records = read_jobs(folder)
    return records


def _configuration(recorded: Mapping[str, Any]) -> ClusterConfig:
    """Return a recorded configuration, without keys that only another version had."""
    known = {field.name for field in dataclasses.fields(ClusterConfig)}
    return ClusterConfig(**{key: value for key, value in recorded.items() if key in known})


_LEFT = re.compile(r"(?:(\d+)-)?(?:(\d+):)?(\d+):(\d+)")  # days-hours:minutes:seconds
_PATIENCE_SECONDS = 10.0


def seconds_left(environment: Mapping[str, str]) -> float | None:
    """Return the seconds to the time limit of this process's job; None: there is none, or unknown.

    ``SLURM_JOB_END_TIME`` says it (seconds since 1970), but Slurm 22.05 and older never set that:
    then `squeue` is asked, which may take some seconds, so one rank should ask.
    """
    if (end := environment.get("SLURM_JOB_END_TIME", "")).isdigit():
        return int(end) - time.time()
    job = job_of(environment)
    if not job or not has_client("squeue"):
        return None
    words = ("--noheader", f"--jobs={job}", "--format=%L")
    try:
        text = run_client("squeue", *words, patience=_PATIENCE_SECONDS)
    except ClusterError:
        return None
    found = _LEFT.fullmatch(text.strip())
    if found is None:  # UNLIMITED, NOT_SET, INVALID
        return None
    days, hours, minutes, seconds = (int(each or 0) for each in found.groups())
    return 86400.0 * days + 3600 * hours + 60 * minutes + seconds
