"""How OpenMP's threads wait for work, set before torch reads it.

Between two operations the threads of a process spin for a while, so that the next one starts
sooner. On a machine with other work (loader processes, other ranks, other people's jobs) they
take the cores that this work needs: a step on two threads then takes several times as long
(``benchmarks/busy.py``). Threads that sleep instead cost a few percent on an idle machine.
"""

from __future__ import annotations

from collections.abc import MutableMapping

POLICY = "OMP_WAIT_POLICY"
_SETTINGS = (POLICY, "GOMP_SPINCOUNT", "KMP_BLOCKTIME")  # OpenMP's own, GNU's, Intel's


def wait_passively(environment: MutableMapping[str, str]) -> None:
    """Let waiting threads sleep, unless the environment says how they wait already.

    OpenMP reads it once, when torch is imported; processes started later inherit it.
    """
    if not any(name in environment for name in _SETTINGS):
        environment[POLICY] = "PASSIVE"
