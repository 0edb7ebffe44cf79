"""Predicted against measured: training steps of 1, 2 and 4 processes over gloo on this machine.

    python -m benchmarks.predict_check                 # three minutes on an idle machine
    python -m benchmarks.predict_check --clock cpu     # on a busy one: the processes' own time

The "card" is a core. Its rates of products, copies and operations are measured alone, then scaled
so that the predictions of one process are what one process takes for many images and for few: what
shrinks with the batch (products and copies) by one factor, what does not (operations) by another.
The link is gloo between two processes, measured with a small and a large all-reduce. How long ranks
wait at a collective for the last of them is measured without any network: processes that compute
pieces as long as those between the collectives of a step, with a small all-reduce after each and
without. Then 2 and 4 processes are predicted, with as many images each (weak scaling) and with as
many in all (strong), and compared with the steps of benchmarks/scaling.py. Of more processes than
cores each has a part of a core. The last column says whether a prediction is within 25 % of the
measurement.
"""

from __future__ import annotations

import argparse
import math
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
from t2i_hpc.training.step_count import StepCount, count_operations

_ROW = "{:<8}{:>10}{:>12}{:>13}{:>13}{:>9}{:>14}{:>8}\n"
_TITLES = ("scaling", "processes", "images each", "measured ms", "predicted ms", "error")
_REST = ("communication", "25 %")
_SMALL, _LARGE = 1, 4_000_000  # numbers of float32
_FLOPS = 2 * 8 * 64 * 32 * 32 * 64 * 9  # of the convolution that is measured
_PIECE = (2, 16, 16, 16)  # images of a convolution that is short beside any piece of a step
_PIECES = 100  # of computing, that are timed
_FEWEST = 2  # images with a wrong caption
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

    def count(self, processes: int, images: int) -> StepCount:
        """Count a step of so many processes."""
        captions = Captions(TOKENS, VOCABULARY)
        return count_operations(
            build_system(self.size), EngineConfig(), captions, images, processes
        )

    def predict(self, card: Card, gloo: Link, processes: int, images: int) -> tuple[float, float]:
        """Return the seconds of a step, and the share of communication."""
        count = self.count(processes, images)
        slowdown = self.contention if processes > 1 else 1.0
        if self.clock == "wall":  # a process's own time does not grow where it waits for a core
            slowdown *= max(1.0, processes / CORES)
        cluster = Cluster(card, gloo, None, processes, slowdown)
        if processes > 1:
            times = sum(count.collectives.values()) + len(count.gradients)
            piece = predict(count, cluster, "fp32").seconds / times
            moving = 1e-6 * slowdown * 2 * math.ceil(math.log2(processes)) * gloo.microseconds
            measured = measure_lock_step(self, processes, piece / slowdown)
            cluster = replace(cluster, waiting=max(0.0, measured - moving))
        made = predict(count, cluster, "fp32")
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


def measure_lock_step(check: Check, processes: int, piece: float) -> float:
    """Return what a small all-reduce costs after each piece of computing.

    Args:
        check: whose clock it is.
        processes: in lock-step.
        piece: seconds of computing between two of them, of a process alone.
    """
    with tempfile.TemporaryDirectory() as folder:
        spawn(_in_lock_step, (check, folder, processes, piece), processes)
        found = [torch.load(path) for path in Path(folder).glob("*.pt")]
    without, beside = (max(float(each[way]) for each in found) for way in (0, 1))
    return max(0.0, beside - without)


def _in_lock_step(rank: int, check: Check, folder: str, processes: int, piece: float) -> None:
    torch.set_num_threads(1)
    image, weight = torch.randn(_PIECE), torch.randn(16, 16, 3, 3)
    few = torch.zeros(_SMALL)

    def compute(times: int) -> None:
        for _ in range(times):
            F.conv2d(image, weight, padding=1)

    dist.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=processes)
    times = torch.ones(())
    if rank == 0:  # alone: the others wait for the broadcast
        times *= max(1, round(piece / _seconds(check, lambda: compute(1), 100)))
    dist.broadcast(times, 0)
    found = []
    for reduces in (False, True):
        dist.barrier()
        start = check.now()
        for _ in range(_PIECES):
            compute(int(times))
            if reduces:
                dist.all_reduce(few)
        dist.barrier()  # together: what one process gains another loses
        found.append((check.now() - start) / _PIECES)
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


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


def fitted(check: Check, core: Card, gloo: Link, alone: dict[int, float]) -> tuple[float, float]:
    """Return by what products and copies, and by what operations, take longer than measured.

    Args:
        check: what is compared.
        core: as it was measured.
        gloo: of no account here.
        alone: seconds of a step of one process by its images.
    """
    rows = []
    for images in alone:
        whole = check.predict(core, gloo, 1, images)[0]
        shrinking = check.predict(replace(core, host_microseconds=0.0), gloo, 1, images)[0]
        rows.append((shrinking, whole - shrinking))
    (a, b), (c, d) = rows[0], rows[-1]
    first, *_, last = [*alone.values(), *alone.values()]
    determinant = a * d - b * c
    if determinant:
        work, fixed = (first * d - last * b) / determinant, (last * a - first * c) / determinant
        if min(work, fixed) > 0:
            return work, fixed
    both = first / (a + b)  # one size, or figures of a busy machine that say less than nothing
    return both, both


def scaled(card: Card, work: float, fixed: float) -> Card:
    """Return a card on which products and copies, and operations, take so much longer."""
    return replace(
        card,
        products=card.products / work,
        streams=card.streams / work,
        host_microseconds=card.host_microseconds * fixed,
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
    few = max(_FEWEST, size.batch // max(check.processes))
    alone = {images: check.measure(1, images) for images in (size.batch, few)}
    work, fixed = fitted(check, core, gloo, alone)
    card = scaled(core, work, fixed)
    sys.stdout.write(
        f"a core: {1000 * core.fp32:.0f} GFLOP/s, {core.gigabytes_per_second:.1f} GB/s, "
        f"{core.host_microseconds:.1f} µs an operation; by steps of one process of "
        f"{' and '.join(map(str, alone))} images products and copies by {work:.2f}, operations by "
        f"{fixed:.2f}, beside others by {check.contention:.2f}; gloo: "
        f"{gloo.gigabytes_per_second:.2f} GB/s, {gloo.microseconds:.0f} µs a hop\n\n"
    )
    sys.stdout.write(_ROW.format(*_TITLES, *_REST))
    for images, seconds in alone.items():
        sys.stdout.write(
            _ROW.format("-", 1, images, f"{1000 * seconds:.0f}", *("given", "", "", ""))
        )
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
