"""The two ways in which a job goes on: put back into the queue, or followed by another."""

from __future__ import annotations

import dataclasses
import os
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from t2i_hpc.cluster.jobs import JobRecord, Plan, Work, chain_of, read_jobs
from t2i_hpc.cluster.slurm.client import run_client
from t2i_hpc.cluster.slurm.partitions import read_partitions
from t2i_hpc.common.errors import ClusterError
from t2i_hpc.config.cluster import ClusterConfig

_PATIENCE_SECONDS = 5.0


def put_back(exclude: str = "") -> None:
    """Put this process's job back into the queue under its number; return when Slurm ends it.

    Args:
        exclude: nodes it shall not get any more. Slurm takes this only of jobs that wait, so it
            is said after the job was put back, while its script still lives.

    Raises:
        ClusterError: Slurm refuses.
    """
    job = os.environ["SLURM_JOB_ID"]
    run_client("scontrol", "requeue", job)
    if exclude:
        _exclude(job, exclude)


def chain(record: JobRecord, folder: Path, cluster: ClusterConfig) -> str:
    """Submit a job's work again, to begin when the job has ended; return the new number.

    Where a person had the first job held back, its successor is not.

    Raises:
        ClusterError: Slurm refuses.
    """
    from t2i_hpc.cluster.slurm.submission import submit
    from t2i_hpc.cluster.snapshot import Snapshot
    from t2i_hpc.config.compose import to_yaml

    work = Work(record.task, record.words, Path(record.folder))
    plan = Plan(record.name, (work,), folder)
    options = [each for each in cluster.options if each != "--hold"]
    cluster = dataclasses.replace(cluster, options=options)
    (successor,) = submit(plan, cluster, Snapshot.take(to_yaml(cluster)), follows=record.job)
    _let_wait(folder, successor.job)
    return successor.job


def affordable(cluster: ClusterConfig, bad: Sequence[str]) -> list[str]:
    """Return the bad nodes if enough others are left, else none; say which.

    Raises:
        ClusterError: Slurm does not say what it has.
    """
    partitions = read_partitions()
    names = os.environ.get("SLURM_JOB_PARTITION", cluster.partition).split(",")
    left = sum(each.size for each in partitions if each.name in names) - len(bad)
    nodes = ", ".join(bad)
    if left < cluster.nodes:
        sys.stderr.write(f"t2i_hpc: {nodes} failed twice, but there are no other nodes\n")
        return []
    sys.stderr.write(f"t2i_hpc: {nodes} failed twice and is not used again by this job\n")
    return list(bad)


def _exclude(job: str, nodes: str) -> None:
    end = time.monotonic() + _PATIENCE_SECONDS
    while True:
        try:
            run_client("scontrol", "update", f"JobId={job}", f"ExcNodeList={nodes}")
            return
        except ClusterError:
            if time.monotonic() > end:
                raise
            time.sleep(0.2)


def _let_wait(folder: Path, successor: str) -> None:
    """Let the jobs that wait for those before a successor, e.g. a merge, wait for it as well."""
    records = read_jobs(folder)
    chain = set(chain_of(records, successor))
    for waiting in records:
        if waiting.job in chain or not _parents(chain) & set(waiting.after):
            continue
        heirs = [each.job for each in records if each.follows and _heir_of(records, each, waiting)]
        jobs = ",".join(f"afterany:{job}" for job in [*waiting.after, *heirs])
        try:
            run_client("scontrol", "update", f"JobId={waiting.job}", f"Dependency={jobs}")
        except ClusterError as error:
            sys.stderr.write(f"t2i_hpc: job {waiting.job} may begin too early: {error}\n")


def _heir_of(records: Sequence[JobRecord], heir: JobRecord, waiting: JobRecord) -> bool:
    """Whether a successor stands for a job that another one waits for."""
    return bool(_parents(chain_of(records, heir.job)) & set(waiting.after))


def _parents(jobs: Iterable[str]) -> set[str]:
    return {job.partition("_")[0] for job in jobs}
