"""Nodes that a job is not to get again.

A node that lost this job's ranks twice within a day is not used again by it. Only what is certain
counts: a node that the ranks of a start *named* as lost, where the task then ended by itself.
Preemption, a time limit and ``kill -9`` say nothing of a node, and a node that went down is taken
out by Slurm itself. A wrong exclusion is worse than a third failure, so the job keeps at least as
many nodes like its own as it needs.
"""

from __future__ import annotations

import datetime
import os
from collections import Counter
from collections.abc import Iterable, Sequence

from t2i_hpc.cluster.slurm.client import run_client, split_rows
from t2i_hpc.cluster.slurm.starts import Start
from t2i_hpc.common.errors import ClusterError
from t2i_hpc.common.terminal import say_in_log
from t2i_hpc.runs.sessions import Session

_BAD_FAILURES = 2
_BAD_WITHIN = datetime.timedelta(days=1)
_USABLE = "idle,mixed,allocated,completing,reserved"


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
