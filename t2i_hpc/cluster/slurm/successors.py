"""The job that resumes another one's work (``on_stop=chain``).

A successor is submitted when its job *begins* and waits for the job's end. So it is there whatever
ends the job, also what leaves nobody to submit anything: a power cut, a preemption without grace
time, a killed batch script. A job whose work is done withdraws it.
"""

from __future__ import annotations

import dataclasses
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
from t2i_hpc.cluster.slurm.client import ask_states, run_client
from t2i_hpc.cluster.slurm.current_job import CurrentJob
from t2i_hpc.common.errors import ClusterError
from t2i_hpc.common.terminal import say_in_log


def ensure_successor(current: CurrentJob) -> JobRecord:
    """Return the job that resumes a job's work; submit it if there is none yet.

    Raises:
        ClusterError: Slurm refuses.
    """
    there = successor_of(read_jobs(current.folder), current.job)
    return there or _resubmit(current, ())


def wait_for_successors(current: CurrentJob) -> JobRecord | None:
    """Resubmit a job behind the successors of those that it waited for, e.g. of a merge.

    Returns:
        the new job; None where no successor waits or runs: then this job may begin.

    Raises:
        ClusterError: Slurm refuses, or gives no answer.
    """
    record = current.record
    if (
        record is None
        or not record.after  # it waited for nothing,
        or record.predecessor in record.after  # for the job that it resumes,
        or "_" in record.job  # or for its turn in an array
    ):
        return None
    records = read_jobs(current.folder)
    awaited = _parents(record.after)
    resumed = {each.job: _parents(chain_of(records, each.job)[1:]) for each in records}
    successors = [job for job, before in resumed.items() if awaited & before]
    living = list(ask_states(successors).living())
    return _resubmit(current, living) if living else None


def withdraw_successor(current: CurrentJob) -> None:
    """Take the job that was to resume this one's work out of the queue, and forget it."""
    successor = successor_of(read_jobs(current.folder), current.job)
    if successor is None:
        return
    try:
        run_client("scancel", "--quiet", successor.job)
    except ClusterError as error:  # it ends by itself as soon as it begins
        say_in_log(f"job {successor.job} stays in the queue: {error}")
        return
    for folder in {current.folder, current.work}:
        forget_job(folder, successor.job)


def _resubmit(current: CurrentJob, after: Sequence[str]) -> JobRecord:
    """Submit a job's work as another job. Where a person had the first held, this one is not."""
    # At call time: submitit is not needed at most ends of a job, which have seconds.
    from t2i_hpc.cluster.slurm.submission import Snapshot, submit
    from t2i_hpc.config.compose import to_yaml

    assert current.record is not None
    record = current.record
    work = Work(record.task, record.arguments, Path(record.folder))
    options = [each for each in current.cluster.options if each not in ("--hold", "-H")]
    cluster = dataclasses.replace(current.cluster, options=options)
    (again,) = submit(
        Plan(record.name, (work,), current.folder),
        cluster,
        Snapshot.take(to_yaml(cluster)),
        predecessor=record.job,
        after=after,
    )
    return again


def _parents(jobs: Iterable[str]) -> set[str]:
    return {job.partition("_")[0] for job in jobs}
