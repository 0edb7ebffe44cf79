"""The job that this process runs in: its record, its work, and what Slurm has decided about it.

At a time limit, after a preemption, or when its batch script is killed, a job is COMPLETING for as
long as ``KillWait``, and nobody requeues it; at that moment ``scontrol requeue`` is still accepted.
A job that a person cancelled looks nearly the same: only ``scontrol show job`` tells them apart.
"""

from __future__ import annotations

import dataclasses
import enum
import os
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from t2i_hpc.cluster.jobs import JobRecord, cancelled_jobs, chain_of, read_jobs
from t2i_hpc.cluster.slurm.client import run_client
from t2i_hpc.cluster.slurm.starts import Start, progress_of, read_starts
from t2i_hpc.common.errors import ClusterError
from t2i_hpc.config.cluster import ClusterConfig
from t2i_hpc.runs.sessions import job_of

_FIELD = re.compile(r"(?:^|\s)(\w+)=(\S*)")
_NOTHING = {"", "None", "(null)", "N/A"}


@dataclass(frozen=True)
class CurrentJob:
    """A job as its folder knows it.

    Attributes:
        job: its number, ``123`` or ``123_4``.
        restart: how often Slurm had started it before.
        folder: where its submission is recorded.
        work: what its task writes into.
        cluster: its configuration.
        chain: the job and its predecessors, newest first.
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
        return read_starts(self.work, self.chain)

    def was_cancelled(self) -> bool:
        """Whether `t2i_hpc.cancel` was told to end it."""
        cancelled = cancelled_jobs(self.folder) | cancelled_jobs(self.work)
        return bool(cancelled & {self.job, self.job.partition("_")[0]})


def read_current_job(folder: Path, timeout: float = 0.0) -> CurrentJob:
    """Read what a folder knows of this process's job.

    Args:
        folder: where its submission is recorded.
        timeout: seconds to wait for that: a job that begins at once may be ahead of its record.
    """
    job = job_of(os.environ)
    records = _wait_for_record(folder, job, timeout)
    record = next((each for each in records if each.job == job), None)
    return CurrentJob(
        job,
        int(os.environ.get("SLURM_RESTART_COUNT") or 0),
        folder,
        Path(record.folder) if record else folder,
        _configuration(record.cluster) if record else ClusterConfig(),
        tuple(chain_of(records, job)),
        record,
    )


class State(enum.Enum):
    """What Slurm has decided about a job."""

    RUNNING = "it runs"
    TIME_LIMIT = "its time limit is reached"
    PREEMPTED = "it was preempted"
    SCRIPT_KILLED = "its batch script was killed"
    STALE_END = "Slurm took the end of an earlier start for that of this one"
    REQUEUED = "it is requeued"
    CANCELLED = "it was cancelled"
    OTHER = "Slurm ends it"
    UNKNOWN = "Slurm gives no answer"

    @property
    def interrupted(self) -> bool:
        """Whether Slurm ends the job although nobody asked for its end."""
        return self in _INTERRUPTED

    @property
    def can_be_requeued(self) -> bool:
        """Whether Slurm accepts a requeue now, and nobody asked for one or for the job's end."""
        # UNKNOWN: of a task that stopped by itself; Slurm refuses what cannot be requeued.
        return self.interrupted or self in (State.RUNNING, State.UNKNOWN)


_INTERRUPTED = {State.TIME_LIMIT, State.PREEMPTED, State.SCRIPT_KILLED, State.STALE_END}


@dataclass(frozen=True)
class SlurmJob:
    """A job as Slurm knows it.

    Attributes:
        state: what Slurm has decided about it.
        excluded: nodes that it shall not get, as a person or an earlier start said; "" for none.
        directory: its working directory; None where Slurm gives no answer.
    """

    state: State
    excluded: str = ""
    directory: Path | None = None


def show_job(job: str) -> SlurmJob:
    """Ask Slurm about a job, ``123`` or ``123_4``."""
    try:
        text = run_client("scontrol", "show", "job", "--oneliner", job)
    except ClusterError:
        return SlurmJob(State.UNKNOWN)
    found: dict[str, str] = {}
    for name, value in _FIELD.findall(text):
        found.setdefault(name, "" if value in _NOTHING else value)
    directory = re.search(r"(?:^|\s)WorkDir=(.*?)(?: \w+=|$)", text)
    return SlurmJob(
        _state(found),
        found.get("ExcNodeList", ""),
        Path(directory[1]) if directory else None,
    )


def _wait_for_record(folder: Path, job: str, timeout: float) -> list[JobRecord]:
    end = time.monotonic() + timeout
    records = read_jobs(folder)
    while records and job not in {each.job for each in records} and time.monotonic() < end:
        time.sleep(0.5)
        records = read_jobs(folder)
    return records


def _configuration(recorded: Mapping[str, Any]) -> ClusterConfig:
    """Return a recorded configuration, without keys that only another version had."""
    known = {field.name for field in dataclasses.fields(ClusterConfig)}
    return ClusterConfig(**{key: value for key, value in recorded.items() if key in known})


def _state(found: dict[str, str]) -> State:
    state, reason = found.get("JobState", ""), found.get("Reason", "")
    other_start = found.get("Restarts", "0") != (os.environ.get("SLURM_RESTART_COUNT") or "0")
    signs = (
        (not state, State.UNKNOWN),
        (state == "RUNNING", State.RUNNING),
        (other_start or state in ("PENDING", "REQUEUED", "REQUEUE_HOLD"), State.REQUEUED),
        (reason == "TimeLimit", State.TIME_LIMIT),
        (bool(found.get("PreemptTime")), State.PREEMPTED),
        (reason == "JobLaunchFailure", State.SCRIPT_KILLED),
        # The exit code of the script that asks, which has not ended. A busy controller may handle
        # the last message of the start before only when this one runs.
        (reason == "NonZeroExitCode", State.STALE_END),
        (not reason, State.CANCELLED),
    )
    return next((each for holds, each in signs if holds), State.OTHER)
