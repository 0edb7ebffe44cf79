"""Nodes that failed a job twice, as its sessions tell."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable

from t2i_hpc.common.sessions import Session

_TWICE = 2


def find_bad_nodes(sessions: Iterable[Session], jobs: Collection[str]) -> list[str]:
    """Return the nodes that failed twice in the sessions of some jobs.

    A failure of a node is to be named as that of a lost rank, or to hold the first rank of a
    session that was cut off without a last line.
    """
    failures: Counter[str] = Counter()
    for session in sessions:
        if session.job in jobs:
            failures.update(set(session.lost_hosts))
            if session.outcome is None:
                failures.update(session.hosts[:1])
    return sorted(node for node, count in failures.items() if count >= _TWICE)
