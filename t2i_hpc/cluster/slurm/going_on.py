"""The two ways in which a job's work is resumed: a requeue, or another job that was submitted.

A successor (``on_stop=chain``) is submitted when its job *begins* and waits for the job's end. So
it is there whatever ends the job, also what leaves nobody to submit anything: a power cut, a
preemption without grace time, a killed batch script. A job whose work is at its end withdraws it.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterable, Sequence
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
from t2i_hpc.cluster.slurm.own_record import KnownJob
from t2i_hpc.cluster.states import ask_states
from t2i_hpc.common.errors import ClusterError
from t2i_hpc.common.output import say_in_log

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
    from t2i_hpc.cluster.slurm.submission import submit
    from t2i_hpc.cluster.snapshot import Snapshot
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
