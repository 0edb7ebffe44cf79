"""Predicted against measured: training steps of 1, 2 and 4 processes over gloo on this machine.

    python -m benchmarks.predict_check                 # three minutes on an idle machine
    python -m benchmarks.predict_check --clock cpu     # on a busy one: the processes' own time

The "card" is a core. Its rates of products, copies and operations are measured alone, then scaled
so that the prediction of one process is what one process takes. The link is gloo between two
processes, measured with a small and a large all-reduce. Then 2 and 4 processes are predicted, with
as many images each (weak scaling) and with as many in all (strong), and compared with the steps of
benchmarks/scaling.py. Of more processes than cores each has a part of a core. The last column says
whether a prediction is within 25 % of the measurement.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.multiprocessing.spawn import spawn

from benchmarks import scaling
from benchmarks.batches import TOKENS, VOCABULARY, Size
from benchmarks.step import build_system
from t2i_hpc.cluster.hardware import Card, Link
from t2i_hpc.common.process import keep_freed_memory
from t2i_hpc.config.engine import EngineConfig
from t2i_hpc.launching.prediction import Cluster, predict
from t2i_hpc.training.cost import Captions
from t2i_hpc.training.step_count import count_operations

_ROW = "{:<8}{:>10}{:>12}{:>13}{:>13}{:>9}{:>14}{:>8}\n"
_TITLES = ("scaling", "processes", "images each", "measured ms", "predicted ms", "error")
_REST = ("communication", "25 %")
_SMALL, _LARGE = 1, 4_000_000  # numbers of float32
_FLOPS = 2 * 8 * 64 * 32 * 32 * 64 * 9  # of the convolution that is measured
CORES = len(os.sched_getaffinity(0))


@dataclass(frozen=True)
class Check:
    """What is compared.

    `contention` is what products and copies take longer where every core has some, since cores
    share memory and caches.
    """

    size: Size
    processes: tuple[int, ...]
    steps: int
    clock: str
    contention: float = 1.0

    @property
    def now(self) -> Callable[[], float]:
        """The clock."""
        return time.process_time if self.clock == "cpu" else time.perf_counter

    def measure(self, processes: int, images: int) -> float:
        """Return the seconds of a step."""
        size = replace(self.size, batch=images)
        plan = scaling.Plan("ddp", size, processes, "cpu", "fp32", self.steps, 1, self.clock)
        return scaling.measure(plan).together

    def predict(self, card: Card, gloo: Link, processes: int, images: int) -> tuple[float, float]:
        """Return the seconds of a step, and the share of communication."""
        captions = Captions(TOKENS, VOCABULARY)
        count = count_operations(
            build_system(self.size), EngineConfig(), captions, images, processes
        )
        slowdown = self.contention if processes > 1 else 1.0
        if self.clock == "wall":  # a process's own time does not grow where it waits for a core
            slowdown *= max(1.0, processes / CORES)
        made = predict(count, Cluster(card, gloo, None, processes, slowdown), "fp32")
        return made.seconds, made.communication


def measure_core(check: Check) -> Card:
    """Return a core's rates of products, copies and small operations."""
    torch.set_num_threads(1)
    keep_freed_memory()
    product, copy = _product_and_copy(check)
    few = torch.zeros(4)
    operation = _seconds(check, lambda: [few.add(1) for _ in range(1000)]) / 1000
    rate, stream = _FLOPS / product / 1e12, 2 * 4 * _LARGE / copy / 1e9
    return Card(
        *("core", rate, rate, rate, rate, 0.0, stream, "gloo"),
        products=1.0,
        streams=1.0,
        kernel_microseconds=0.0,
        host_microseconds=1e6 * operation,
        own_host=False,
    )


def _product_and_copy(check: Check) -> tuple[float, float]:
    """Return the seconds of a convolution of `_FLOPS` and of a copy of `_LARGE` numbers."""
    image, weight = torch.randn(8, 64, 32, 32), torch.randn(64, 64, 3, 3)
    product = _seconds(check, lambda: F.conv2d(image, weight, padding=1))
    source = torch.randn(_LARGE)
    target = torch.empty_like(source)
    return product, _seconds(check, lambda: target.copy_(source))


def measure_contention(check: Check) -> float:
    """Return how much longer products and copies take with one process on every core."""
    times = []
    for processes in (1, CORES):
        with tempfile.TemporaryDirectory() as folder:
            spawn(_compute, (check, folder, processes), processes)
            times.append(max(torch.load(path) for path in Path(folder).glob("*.pt")))
    return max(1.0, float(times[1] / times[0]))


def _compute(rank: int, check: Check, folder: str, processes: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=processes)
    dist.barrier()
    found = [sum(_product_and_copy(check)) for _ in range(5)]
    torch.save(statistics.median(found), f"{folder}/{rank}.pt")
    dist.barrier()  # all compute until the last has measured
    dist.destroy_process_group()


def measure_gloo(check: Check) -> Link:
    """Return the link of two processes."""
    with tempfile.TemporaryDirectory() as folder:
        spawn(_all_reduce, (check, folder), 2)
        small, large = torch.load(Path(folder) / "times.pt")
    # Of two ranks as many bytes as are averaged leave each, and a small one has two hops.
    return Link("gloo", "node", 4 * _LARGE / (large - small) / 1e9, 1.0, 1e6 * small / 2)


def _all_reduce(rank: int, check: Check, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=2)
    found = []
    for numbers in (_SMALL, _LARGE):
        values = torch.zeros(numbers)
        found.append(_seconds(check, partial(dist.all_reduce, values), 30))
    if rank == 0:
        torch.save(found, Path(folder) / "times.pt")
    dist.destroy_process_group()


def _seconds(check: Check, work: Callable[[], object], rounds: int = 10) -> float:
    """Return the median time of some work."""
    times = []
    for _ in range(rounds + 1):
        start = check.now()
        work()
        times.append(check.now() - start)
    return statistics.median(times[1:])


def scaled(card: Card, factor: float) -> Card:
    """Return a card on which everything takes `factor` times as long."""
    return replace(
        card,
        products=card.products / factor,
        streams=card.streams / factor,
        host_microseconds=card.host_microseconds * factor,
    )


def main(arguments: list[str]) -> None:
    """Measure the machine, predict, measure the steps, print."""
    parser = argparse.ArgumentParser(description="Predicted steps against measured ones.")
    parser.add_argument("--processes", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--width", type=int, default=4, help="ngf and ndf")
    parser.add_argument("--resolution", type=int, default=64, help="pixels")
    parser.add_argument("--batch", type=int, default=8, help="images of one process")
    parser.add_argument("--steps", type=int, default=5, help="timed ones")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    parser.add_argument("--without-damsm", action="store_true", help="leave DAMSM out")
    given = parser.parse_args(arguments)
    size = Size(given.width, given.resolution, given.batch, not given.without_damsm)
    check = Check(size, tuple(given.processes), given.steps, given.clock)
    sys.stdout.write(f"{CORES} cores, load {os.getloadavg()[0]:.1f} before, {given.clock} time\n")
    check = replace(check, contention=measure_contention(check))
    core, gloo = measure_core(check), measure_gloo(check)
    alone = check.measure(1, size.batch)
    factor = alone / check.predict(core, gloo, 1, size.batch)[0]
    card = scaled(core, factor)
    sys.stdout.write(
        f"a core: {1000 * core.fp32:.0f} GFLOP/s, {core.gigabytes_per_second:.1f} GB/s, "
        f"{core.host_microseconds:.1f} µs an operation, by the step of one process all by "
        f"{factor:.2f}, beside others by {check.contention:.2f}; gloo: "
        f"{gloo.gigabytes_per_second:.2f} GB/s, {gloo.microseconds:.0f} µs a hop\n\n"
    )
    sys.stdout.write(_ROW.format(*_TITLES, *_REST))
    sys.stdout.write(_ROW.format("-", 1, size.batch, f"{1000 * alone:.0f}", *("given", "", "", "")))
    for name in ("weak", "strong"):
        for processes in check.processes:
            images = size.batch if name == "weak" else size.batch // processes
            seconds, share = check.predict(card, gloo, processes, images)
            measured = check.measure(processes, images)
            error = seconds / measured - 1
            sys.stdout.write(
                _ROW.format(
                    *(name, processes, images, f"{1000 * measured:.0f}", f"{1000 * seconds:.0f}"),
                    *(f"{error:+.0%}", f"{share:.0%}", "yes" if abs(error) <= 0.25 else "no"),
                )
            )
            sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1:])
