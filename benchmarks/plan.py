"""What the plan of a very large data set costs: 10⁹ samples in 10⁶ shards.

    python -m benchmarks.plan    # a second

A jump asks one plan for one random position; hardly any two of them fall into the same group of
shards, so each shuffles its group, and in another epoch the groups too. The next positions of
a stream find both already shuffled.
"""

from __future__ import annotations

import sys
import time
import tracemalloc

import numpy as np

from t2i_hpc.data.plan import Plan

_JUMPS = 300
_ROW = "{:<36}{:>10}{:>15}\n"


def make_plan() -> Plan:
    """Build the plan of 10⁹ samples in 10⁶ shards."""
    return Plan(np.full(10**6, 1000), seed=1, window=8)


def jumps(plan: Plan, epochs: int) -> list[float]:
    """Return the seconds of jumps to random positions of some epochs."""
    rng, seconds = np.random.default_rng(2), []
    for position in rng.integers(epochs * plan.sample_count, size=_JUMPS).tolist():
        start = time.perf_counter()
        plan.locate(position)
        seconds.append(time.perf_counter() - start)
    return seconds


def reads(plan: Plan, batch: int) -> list[float]:
    """Return the seconds of consecutive batches of positions."""
    seconds = []
    for begin in range(0, _JUMPS * batch, batch):
        start = time.perf_counter()
        plan.indices(range(begin, begin + batch))
        seconds.append(time.perf_counter() - start)
    return seconds


def memory_of_plan() -> int:
    """Return the most bytes that a plan takes while it is built and jumped in."""
    tracemalloc.start()
    jumps(make_plan(), 1000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


def table(batch: int) -> str:
    """Return the figures as lines of text."""
    start = time.perf_counter()
    plan = make_plan()
    ready = time.perf_counter() - start
    timed = {
        "jump in the same epoch, µs": jumps(plan, 1),
        "jump to another epoch, µs": jumps(plan, 1000),
        f"next {batch} positions, µs": reads(plan, batch),
    }
    lines = [_ROW.format("plan of 10⁹ samples, 10⁶ shards", "median", "99 of 100")]
    lines.append(_ROW.format("ready, s", f"{ready:.3f}", ""))
    lines.append(_ROW.format("memory at most, MB", f"{memory_of_plan() / 1e6:.0f}", ""))
    for name, seconds in timed.items():
        median, most = np.percentile(seconds, (50, 99)) * 1e6
        lines.append(_ROW.format(name, f"{median:.0f}", f"{most:.0f}"))
    return "".join(lines)


if __name__ == "__main__":
    sys.stdout.write(table(batch=24))
