"""Making shards in several processes, each of which takes every n-th of them.

Shards are equally large, so nothing is handed out while they work, and no lock is shared that
a killed process could take with it: a process reports through a pipe of its own, whose end also
reports its death, and counts images in a place of its own.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from ctypes import c_uint64
from dataclasses import dataclass, field
from multiprocessing import connection, get_context
from multiprocessing.context import ForkProcess
from typing import Protocol

import numpy as np
import numpy.typing as npt

from t2i_hpc.common.errors import DataError, UserError
from t2i_hpc.common.terminal import progress
from t2i_hpc.data.build.shard import Rejection, TooManyRejected

_MOST_BY_DEFAULT = 8
_SECONDS_BETWEEN_LOOKS = 0.2
_SECONDS_TO_END = 5.0
_FORK = get_context("fork")  # the samples are shared, not copied to each process


@dataclass
class Limit:
    """Counts rejected images over all shards."""

    allowed: int
    found: int = 0

    def add(self, count: int) -> None:
        """Count the rejected images of a shard that is done.

        Raises:
            TooManyRejected: these were too many.
        """
        self.found += count
        if self.found > self.allowed:
            raise TooManyRejected


@dataclass(frozen=True)
class _Report:
    """What a worker reports: a shard is done, or why it stops."""

    rejected: int = 0
    error: str = ""
    too_many: list[Rejection] = field(default_factory=list)


class Made(Protocol):
    """What is known of a unit of work that is done."""

    @property
    def rejected(self) -> Sequence[Rejection]:
        """What was left out of it."""


class Work(Protocol):
    """Work in units that processes take in any order, each of which can be made again."""

    @property
    def title(self) -> str:
        """What is done, for people."""

    @property
    def unit(self) -> str:
        """What is counted, e.g. "images"."""

    @property
    def workers(self) -> int | None:
        """How many processes are wanted; None: one a core."""

    def amount(self, number: int, /) -> int:
        """Return how much a unit is."""

    def make(self, number: int, advance: Callable[[int], None], /) -> Made:
        """Do a unit and record that it is done; `advance` is told how much more is."""


def make_shards(task: Work, shards: Sequence[int], limit: Limit) -> None:
    """Make some shards of a task, showing how many images are done.

    Raises:
        DataError: a file cannot be read, the disk is full, or a worker was killed.
        TooManyRejected: more images than allowed cannot be used.
    """
    total = sum(task.amount(shard) for shard in shards)
    workers = min(_workers(task.workers), len(shards))
    if workers <= 1:
        with progress(task.title, total, task.unit) as advance:
            for shard in shards:
                limit.add(len(task.make(shard, advance).rejected))
        return
    # Threads and fork do not go together, so the processes come before the bar.
    with (
        _started(task, shards, workers) as group,
        progress(task.title, total, task.unit) as advance,
    ):
        group.watch(limit, advance)


def _workers(wanted: int | None) -> int:
    cores = len(os.sched_getaffinity(0))
    return min(cores, _MOST_BY_DEFAULT) if wanted is None else wanted


@dataclass
class _Workers:
    """The processes with the pipes of their reports and their counts of images."""

    processes: dict[connection.Connection, ForkProcess]
    counts: npt.NDArray[np.uint64]
    shown: int = 0

    def watch(self, limit: Limit, advance: Callable[[int], None]) -> None:
        """Wait until all have ended well."""
        reporting = list(self.processes)
        while reporting:
            connection.wait(reporting, _SECONDS_BETWEEN_LOOKS)
            for pipe in [pipe for pipe in reporting if pipe.poll()]:
                if not self._hear(pipe, limit):
                    reporting.remove(pipe)
            done = int(self.counts.sum())
            if done > self.shown:
                advance(done - self.shown)
            self.shown = done

    def _hear(self, pipe: connection.Connection, limit: Limit) -> bool:
        """Take one report; return whether there will be more."""
        try:
            report: _Report = pipe.recv()
        except (EOFError, OSError):  # the process has ended, or within a report
            self.processes[pipe].join()
            _refuse_dead(self.processes[pipe].exitcode or 0)
            return False
        if report.too_many:
            raise TooManyRejected(report.too_many)
        if report.error:
            raise DataError(report.error)
        limit.add(report.rejected)
        return True

    def end(self) -> None:
        """End the processes that are still at work."""
        for process in self.processes.values():
            process.terminate()
        for process in self.processes.values():
            process.join(_SECONDS_TO_END)
            process.kill()
            process.join(_SECONDS_TO_END)


def _refuse_dead(code: int) -> None:
    if code < 0:
        raise DataError(
            f"a worker process was killed ({signal.Signals(-code).name}), perhaps for lack of "
            "memory: run the command again, with fewer workers=; finished shards are kept"
        )
    if code:
        raise RuntimeError("a worker process failed; its traceback is above")


@contextmanager
def _started(task: Work, shards: Sequence[int], workers: int) -> Iterator[_Workers]:
    shared = _FORK.RawArray(c_uint64, workers)
    counts = np.frombuffer(memoryview(shared).cast("B"), dtype=np.uint64)
    group = _Workers({}, counts)
    try:
        for place in range(workers):
            mine, its = _FORK.Pipe(duplex=False)
            arguments = (task, shards[place::workers], its, counts[place : place + 1], os.getpid())
            process = _FORK.Process(target=_work, args=arguments, daemon=True)
            process.start()
            its.close()  # or else its end would not show
            group.processes[mine] = process
        yield group
    finally:
        group.end()


def _work(
    task: Work,
    shards: Sequence[int],
    pipe: connection.Connection,
    count: npt.NDArray[np.uint64],
    parent: int,
) -> None:
    """Make shards in a process of its own; the parent answers Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def advance(images: int) -> None:
        count[0] += np.uint64(images)
        if os.getppid() != parent:
            os._exit(1)  # the parent is gone

    with contextlib.suppress(BrokenPipeError):
        try:
            for shard in shards:
                pipe.send(_Report(len(task.make(shard, advance).rejected)))
        except TooManyRejected as stop:
            pipe.send(_Report(too_many=stop.rejected))
        except UserError as error:
            pipe.send(_Report(error=str(error)))
