"""Keep freed memory instead of giving it back to the system at once.

On a CPU torch frees and takes tensors of many megabytes all the time. glibc maps each anew,
and the kernel clears every page again: up to 40 % of the time of a small training here. With
mapping off and trimming late the same pages are used again. The peak is the same.

How OpenMP's threads wait for work, set before torch reads it.

Between two operations the threads of a process spin for a while, so that the next one starts
sooner. GNU's OpenMP, which torch brings, spins for about 3 ms: on a machine with other work (loader
processes, other ranks, other people's jobs) that takes the cores which this work needs, and a
step on two threads then takes up to a hundred times as long. Threads that sleep at once are woken
too late on an idle machine, where two of them can be slower than one. A tenth of a millisecond
costs little in either case (``benchmarks/busy.py``).
"""

from __future__ import annotations

import ctypes
from collections.abc import MutableMapping

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4
_LATE = 2**31 - 1


def keep_freed_memory() -> bool:
    """Tell glibc to reuse large blocks; return whether the C library understood."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    return bool(mallopt(_MMAP_MAX, 0)) and bool(mallopt(_TRIM_THRESHOLD, _LATE))


POLICY = "OMP_WAIT_POLICY"  # what other OpenMPs than GNU's read
SPINS = "GOMP_SPINCOUNT"  # GNU's own, which goes before the policy
OURS = {POLICY: "PASSIVE", SPINS: "10000"}
_SETTINGS = (POLICY, SPINS, "KMP_BLOCKTIME")  # OpenMP's own, GNU's, Intel's


def wait_briefly(environment: MutableMapping[str, str]) -> None:
    """Let waiting threads sleep soon, unless the environment says how they wait already.

    OpenMP reads it once, when torch is imported; processes started later inherit it.
    """
    if not any(name in environment for name in _SETTINGS):
        environment.update(OURS)
