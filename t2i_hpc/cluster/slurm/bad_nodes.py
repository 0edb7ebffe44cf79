"""Nodes that lost this job's ranks twice within a day: the requeued job does without them.

Only what is certain counts: a node that the ranks of a start *named* as lost, where the task then
ended by itself. Preemption, a time limit and ``kill -9`` say nothing of a node, and a node that
went down is taken out by Slurm itself. A wrong exclusion is worse than a third failure, so the job
keeps at least as many nodes like its own as it needs.
"""

from __future__ import annotations

import datetime
import os
from collections import Counter
from collections.abc import Iterable, Sequence

from t2i_hpc.cluster.slurm.client import run_client, split_rows
from t2i_hpc.cluster.slurm.starts import Start
from t2i_hpc.common.errors import ClusterError
from t2i_hpc.common.output import say_in_log
from t2i_hpc.common.sessions import Session

_TWICE = 2
_RECENT = datetime.timedelta(days=1)
_USABLE = "idle,mixed,allocated,completing,reserved"


def find_bad_nodes(
    sessions: Iterable[Session], starts: Sequence[Start], now: datetime.datetime | None = None
) -> list[str]:
    """Return the nodes that were lost twice.

    Args:
        sessions: of the run.
        starts: of this job and those that it resumes.
        now: the time, if not this moment.
    """
    ended = {(start.job, start.restart) for start in starts if start.code is not None}
    since = (now or datetime.datetime.now(datetime.timezone.utc)) - _RECENT
    failures: Counter[str] = Counter()
    for session in sessions:
        recent = session.ended is not None and _time(session.ended) >= since
        if recent and (session.job, session.restart) in ended:
            failures.update(set(session.lost_hosts))
    return sorted(node for node, count in failures.items() if count >= _TWICE)


def spare_nodes(bad: Sequence[str]) -> list[str]:
    """Return the bad nodes if the job can do without them, else none; say which.

    The nodes that this job has now fit it; so do others of the same partition with equal
    processors, memory, GPUs and features.
    """
    if not bad:
        return []
    nodes = ", ".join(bad)
    try:
        alike = _nodes_alike()
    except ClusterError as error:
        say_in_log(f"{nodes} failed twice, and is used again all the same: {error}")
        return []
    if len(alike - set(bad)) < int(os.environ.get("SLURM_JOB_NUM_NODES") or 1):
        say_in_log(f"{nodes} failed twice, but there are no other nodes like it")
        return []
    say_in_log(f"{nodes} failed twice and is not used again by this job")
    return list(bad)


def _nodes_alike() -> set[str]:
    """Return the usable nodes that are like one of this job's own.

    Raises:
        ClusterError: Slurm gives no answer.
    """
    partition = os.environ.get("SLURM_JOB_PARTITION", "")
    words = ["--noheader", "--Node", "--format=%N|%c|%m|%G|%f"]
    words += [f"--partition={partition}"] if partition else []
    own = _read(run_client("sinfo", *words, f"--nodes={os.environ.get('SLURM_JOB_NODELIST', '')}"))
    usable = _read(run_client("sinfo", *words, f"--states={_USABLE}"))
    kinds = set(own.values())
    return {node for node, kind in usable.items() if kind in kinds}


def _read(lines: str) -> dict[str, str]:
    rows, _ = split_rows(lines, 2)
    return {row[0]: row[1] for row in rows}


def _time(text: str) -> datetime.datetime:
    return datetime.datetime.fromisoformat(text)
