"""The two ways in which a job's work is resumed: a requeue, or another job that was submitted.

A successor (``on_stop=chain``) is submitted when its job *begins* and waits for the job's end. So
it is there whatever ends the job, also what leaves nobody to submit anything: a power cut, a
preemption without grace time, a killed batch script. A job whose work is at its end withdraws it.

What Slurm has decided about the job that this process is in, while that job still lives.

At a time limit, after a preemption, or when the batch script is killed, a job is COMPLETING for as
long as ``KillWait``, and nobody requeues it; at that moment ``scontrol requeue`` is still taken.
A job that a person cancelled looks nearly the same. Only ``scontrol show job`` tells them apart.
"""

from __future__ import annotations

import dataclasses
import enum
import os
import re
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from t2i_hpc.cluster.jobs import (
    JobRecord,
    Plan,
    Work,
    chain_of,
    forget_job,
    read_jobs,
    successor_of,
)
from t2i_hpc.cluster.slurm.client import run_client
from t2i_hpc.cluster.slurm.job_record import KnownJob
from t2i_hpc.cluster.states import ask_states
from t2i_hpc.common.errors import ClusterError
from t2i_hpc.common.terminal import say_in_log

_PATIENCE_SECONDS = 5.0
_BACK_ALREADY = "pending execution"


def put_back(job: str, exclude: str = "") -> None:
    """Requeue this process's job under its number; return when Slurm ends it.

    Args:
        job: its number, ``123_4`` for an element of an array. Never SLURM_JOB_ID: one element has
            the number of the whole array there, and Slurm would requeue all of them.
        exclude: nodes it shall not get any more. Slurm takes this only of jobs that wait, so it
            is said after the requeue, while the job's script still lives.

    Raises:
        ClusterError: Slurm refuses.
    """
    try:
        run_client("scontrol", "requeue", job)
    except ClusterError as error:
        if _BACK_ALREADY not in str(error):
            raise
    if exclude:
        exclude_nodes(job, exclude)


def exclude_nodes(job: str, nodes: str) -> None:
    """Let a job that waits, or is about to, not have some nodes.

    Raises:
        ClusterError: Slurm refuses.
    """
    end = time.monotonic() + _PATIENCE_SECONDS
    while True:
        try:
            run_client("scontrol", "update", f"JobId={job}", f"ExcNodeList={nodes}")
            return
        except ClusterError:
            if time.monotonic() > end:
                raise
            time.sleep(0.2)


def ensure_successor(known: KnownJob) -> JobRecord:
    """Return the job that resumes a job's work; submit it if there is none yet.

    Raises:
        ClusterError: Slurm refuses.
    """
    assert known.record is not None
    there = successor_of(read_jobs(known.folder), known.job)
    return there or _submit_again(known, ())


def wait_for_successors(known: KnownJob) -> JobRecord | None:
    """Submit a job again behind the successors of those that it waited for, e.g. of a merge.

    Returns:
        the new job; None where no successor waits or runs: then this job may begin.

    Raises:
        ClusterError: Slurm refuses, or gives no answer.
    """
    record = known.record
    if record is None or not record.after or record.follows in record.after or "_" in record.job:
        return None  # it waits for nothing, for the job that it resumes, or for its turn
    records = read_jobs(known.folder)
    awaited = _parents(record.after)
    resumed = {each.job: _parents(chain_of(records, each.job)[1:]) for each in records}
    heirs = [job for job, before in resumed.items() if awaited & before]
    living = list(ask_states(heirs).living())
    return _submit_again(known, living) if living else None


def withdraw_successor(known: KnownJob) -> None:
    """Take the job that was to resume this one's work out of the queue, and forget it."""
    successor = successor_of(read_jobs(known.folder), known.job)
    if successor is None:
        return
    try:
        run_client("scancel", "--quiet", successor.job)
    except ClusterError as error:  # it ends by itself as soon as it begins
        say_in_log(f"job {successor.job} stays in the queue: {error}")
        return
    for folder in {known.folder, known.work}:
        forget_job(folder, successor.job)


def _submit_again(known: KnownJob, after: Sequence[str]) -> JobRecord:
    """Submit a job's work as another job. Where a person had the first held, this one is not."""
    from t2i_hpc.cluster.jobs import Snapshot
    from t2i_hpc.cluster.slurm.submission import submit
    from t2i_hpc.config.compose import to_yaml

    assert known.record is not None
    record = known.record
    plan = Plan(record.name, (Work(record.task, record.words, Path(record.folder)),), known.folder)
    options = [each for each in known.cluster.options if each not in ("--hold", "-H")]
    cluster = dataclasses.replace(known.cluster, options=options)
    snapshot = Snapshot.take(to_yaml(cluster))
    (again,) = submit(plan, cluster, snapshot, follows=record.job, after=after)
    return again


def _parents(jobs: Iterable[str]) -> set[str]:
    return {job.partition("_")[0] for job in jobs}


_FIELD = re.compile(r"(?:^|\s)(\w+)=(\S*)")
_NOTHING = {"", "None", "(null)", "N/A"}


class Fate(enum.Enum):
    """What becomes of a job."""

    RUNS = "it runs"
    TIME_LIMIT = "its time limit is reached"
    PREEMPTED = "it was preempted"
    SCRIPT_LOST = "its batch script was killed"
    STALE_END = "Slurm took the end of an earlier start for that of this one"
    REQUEUED = "it is requeued"
    CANCELLED = "it was cancelled"
    OTHER = "Slurm ends it"
    UNKNOWN = "Slurm gives no answer"

    @property
    def can_be_requeued(self) -> bool:
        """Whether Slurm takes a requeue now, and nobody asked for one or for the job's end."""
        return self in _CAN_BE_REQUEUED

    @property
    def ends_work(self) -> bool:
        """Whether Slurm ends the job although nobody asked for its end."""
        return self in _ENDS_WORK


_ENDS_WORK = {Fate.TIME_LIMIT, Fate.PREEMPTED, Fate.SCRIPT_LOST, Fate.STALE_END}
_CAN_BE_REQUEUED = _ENDS_WORK | {
    Fate.RUNS,
    Fate.UNKNOWN,  # of a task that stopped by itself; Slurm refuses what cannot be
}


@dataclass(frozen=True)
class OwnJob:
    """This process's job as Slurm knows it.

    Attributes:
        fate: what becomes of it.
        exclude: nodes that it shall not get, as a person or an earlier start said; "" for none.
        folder: its working directory; None where Slurm gives no answer.
    """

    fate: Fate
    exclude: str = ""
    folder: Path | None = None


def ask(job: str) -> OwnJob:
    """Ask Slurm about a job, ``123`` or ``123_4``."""
    try:
        text = run_client("scontrol", "show", "job", "--oneliner", job)
    except ClusterError:
        return OwnJob(Fate.UNKNOWN)
    found: dict[str, str] = {}
    for name, value in _FIELD.findall(text):
        found.setdefault(name, "" if value in _NOTHING else value)
    directory = re.search(r"(?:^|\s)WorkDir=(.*?)(?: \w+=|$)", text)
    return OwnJob(
        _fate(found),
        found.get("ExcNodeList", ""),
        Path(directory[1]) if directory else None,
    )


def _fate(found: dict[str, str]) -> Fate:
    state, reason = found.get("JobState", ""), found.get("Reason", "")
    other_start = found.get("Restarts", "0") != (os.environ.get("SLURM_RESTART_COUNT") or "0")
    signs = (
        (not state, Fate.UNKNOWN),
        (state == "RUNNING", Fate.RUNS),
        (other_start or state in ("PENDING", "REQUEUED", "REQUEUE_HOLD"), Fate.REQUEUED),
        (reason == "TimeLimit", Fate.TIME_LIMIT),
        (bool(found.get("PreemptTime")), Fate.PREEMPTED),
        (reason == "JobLaunchFailure", Fate.SCRIPT_LOST),
        # The exit code of the script that asks, which has not ended. A busy controller may handle
        # the last message of the start before only when this one runs.
        (reason == "NonZeroExitCode", Fate.STALE_END),
        (not reason, Fate.CANCELLED),
    )
    return next((fate for holds, fate in signs if holds), Fate.OTHER)
