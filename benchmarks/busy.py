"""What a training step takes next to other work, by how OpenMP's threads wait.

    python -m benchmarks.busy                 # a few minutes
    python -m benchmarks.busy --steps 5       # quicker and rougher

A small SSA-GAN on the CPU, on one thread and on two; with the default of GNU's OpenMP, whose
threads spin for about 3 ms before they sleep, with ``OMP_WAIT_POLICY=PASSIVE``, and with what
every command sets unless the environment says otherwise. "busy" is next to as many processes that
only compute as there are cores. Each figure is from a process of its own: the median of its steps.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from benchmarks.batches import Size
from benchmarks.step import build_step
from t2i_hpc.common.process import OURS

# Setting the default keeps our own from being set.
POLICIES = {
    "default": {"GOMP_SPINCOUNT": "300000"},
    "passive": {"OMP_WAIT_POLICY": "PASSIVE"},
    "ours": OURS,
}
_SETTINGS = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
_SIZE = Size(width=4, resolution=64, batch=8, damsm=False)
# Ends with its parent, however that ends.
_WORK = "import os\nparent = os.getppid()\nwhile os.getppid() == parent:\n    sum(range(100_000))"
_ROW = "{:<9}{:<10}{:>14}{:>14}{:>14}\n"


def measure(threads: int, steps: int) -> float:
    """Return the median milliseconds of a step in this process."""
    torch.set_num_threads(threads)
    step = build_step("ours", _SIZE)
    step()
    times = []
    for _ in range(steps):
        start = time.perf_counter()
        step()
        times.append(time.perf_counter() - start)
    return 1000 * statistics.median(times)


def measure_apart(policy: str, threads: int, steps: int) -> float:
    """Measure in a process that was started with a policy."""
    names = {name: value for name, value in os.environ.items() if name not in _SETTINGS}
    command = [sys.executable, "-m", "benchmarks.busy", f"--steps={steps}", f"--measure={threads}"]
    environment = names | POLICIES[policy]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    return float(done.stdout)


@contextmanager
def other_work(processes: int) -> Iterator[None]:
    """Keep that many processes computing."""
    command = [sys.executable, "-c", _WORK]
    running = [subprocess.Popen(command) for _ in range(processes)]
    try:
        yield
    finally:
        for process in running:
            process.kill()
            process.wait()


def table(cores: int, steps: int) -> Iterator[str]:
    """Yield the lines of the table as they are measured."""
    yield f"{cores} cores, load {os.getloadavg()[0]:.1f} before; ms a step\n\n"
    yield _ROW.format("threads", "policy", "idle", f"busy ({cores})", "busy / idle")
    for threads in (1, 2):
        for policy in POLICIES:
            idle = measure_apart(policy, threads, steps)
            with other_work(cores):
                busy = measure_apart(policy, threads, steps)
            shown = (f"{idle:.0f}", f"{busy:.0f}", f"{busy / idle:.2f}")
            yield _ROW.format(str(threads), policy, *shown)


def main(arguments: list[str]) -> None:
    """Read the command line, measure, print."""
    parser = argparse.ArgumentParser(description="A training step next to other work.")
    parser.add_argument("--steps", type=int, default=20, help="measured steps of a figure")
    parser.add_argument("--measure", type=int, metavar="THREADS", help="one figure in this process")
    given = parser.parse_args(arguments)
    if given.measure:
        sys.stdout.write(f"{measure(given.measure, given.steps)}\n")
        return
    for line in table(len(os.sched_getaffinity(0)), given.steps):
        sys.stdout.write(line)
        sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1:])
