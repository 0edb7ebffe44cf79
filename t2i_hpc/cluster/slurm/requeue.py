"""How a job's work is resumed: by a requeue, or by another job that was submitted before.

When it is, :mod:`t2i_hpc.cluster.slurm.job` decides: what the batch script calls as its task ends.

A successor (``on_stop=chain``) is submitted when its job *begins* and waits for the job's end. So
it is there whatever ends the job, also what leaves nobody to submit anything: a power cut, a
preemption without grace time, a killed batch script. A job whose work is done withdraws it.

Bad-node exclusion: a node that lost this job's ranks twice within a day is not used again by it.
Only what is certain counts: a node that the ranks of a start *named* as lost, where the task then
ended by itself. Preemption, a time limit and ``kill -9`` say nothing of a node, and a node that
went down is taken out by Slurm itself. A wrong exclusion is worse than a third failure, so the job
keeps at least as many nodes like its own as it needs.
"""

from __future__ import annotations

import dataclasses
import datetime
import os
import time
from collections import Counter
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
from t2i_hpc.cluster.slurm.client import ask_states, run_client, split_rows
from t2i_hpc.cluster.slurm.current_job import CurrentJob
from t2i_hpc.cluster.slurm.starts import Start
from t2i_hpc.common.errors import ClusterError
from t2i_hpc.common.terminal import say_in_log
from t2i_hpc.runs.sessions import Session

_UPDATE_SECONDS = 5.0
_REQUEUED_ALREADY = "pending execution"
_BAD_FAILURES, _BAD_WITHIN = 2, datetime.timedelta(days=1)
_USABLE = "idle,mixed,allocated,completing,reserved"


def requeue(job: str, exclude: str = "") -> None:
    """Requeue this process's job under its number; return when Slurm ends it.

    Args:
        job: its number, ``123_4`` for an element of an array. Never SLURM_JOB_ID: one element has
            the number of the whole array there, and Slurm would requeue all of them.
        exclude: nodes it shall not get any more. Slurm accepts this of waiting jobs only, so it
            is said after the requeue, while the job's script still lives.

    Raises:
        ClusterError: Slurm refuses.
    """
    try:
        run_client("scontrol", "requeue", job)
    except ClusterError as error:
        if _REQUEUED_ALREADY not in str(error):
            raise
    if exclude:
        exclude_nodes(job, exclude)


def exclude_nodes(job: str, nodes: str) -> None:
    """Keep a job that waits, or is about to, from some nodes.

    Raises:
        ClusterError: Slurm refuses.
    """
    end = time.monotonic() + _UPDATE_SECONDS
    while True:
        try:
            run_client("scontrol", "update", f"JobId={job}", f"ExcNodeList={nodes}")
            return
        except ClusterError:
            if time.monotonic() > end:
                raise
            time.sleep(0.2)


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


def find_bad_nodes(
    sessions: Iterable[Session], starts: Sequence[Start], now: datetime.datetime | None = None
) -> list[str]:
    """Return the nodes that lost a rank twice.

    Args:
        sessions: of the run.
        starts: of this job and its predecessors.
        now: the time, if not this moment.
    """
    ended = {(start.job, start.restart) for start in starts if start.code is not None}
    since = (now or datetime.datetime.now(datetime.timezone.utc)) - _BAD_WITHIN
    failures: Counter[str] = Counter()
    for session in sessions:
        recent = session.ended and datetime.datetime.fromisoformat(session.ended) >= since
        if recent and (session.job, session.restart) in ended:
            failures.update(set(session.lost_hosts))
    return sorted(node for node, count in failures.items() if count >= _BAD_FAILURES)


def excludable(bad: Sequence[str]) -> list[str]:
    """Return the bad nodes if the job can do without them, else none; say which.

    The nodes that this job has now fit it; so do others of the same partition with equal
    processors, memory, GPUs and features.
    """
    if not bad:
        return []
    nodes = ", ".join(bad)
    try:
        alike = _equivalent_nodes()
    except ClusterError as error:
        say_in_log(f"{nodes} failed twice, but is not excluded: {error}")
        return []
    if len(alike - set(bad)) < int(os.environ.get("SLURM_JOB_NUM_NODES") or 1):
        say_in_log(f"{nodes} failed twice, but there are no other nodes like it")
        return []
    say_in_log(f"{nodes} failed twice and is not used again by this job")
    return list(bad)


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


def _equivalent_nodes() -> set[str]:
    """Return the usable nodes that are like one of this job's own.

    Raises:
        ClusterError: Slurm gives no answer.
    """
    partition = os.environ.get("SLURM_JOB_PARTITION", "")
    arguments = ["--noheader", "--Node", "--format=%N|%c|%m|%G|%f"]
    arguments += [f"--partition={partition}"] if partition else []
    here = f"--nodes={os.environ.get('SLURM_JOB_NODELIST', '')}"
    own = _kinds(run_client("sinfo", *arguments, here))
    usable = _kinds(run_client("sinfo", *arguments, f"--states={_USABLE}"))
    return {node for node, kind in usable.items() if kind in set(own.values())}


def _kinds(lines: str) -> dict[str, str]:
    """Return what each node consists of."""
    rows, _ = split_rows(lines, 2)
    return {row[0]: row[1] for row in rows}
