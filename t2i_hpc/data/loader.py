"""Batches that processes make ahead, in memory that they share with the one that trains.

Worker w of W makes the batches w, w + W, …, and knows from the sampler which samples those are: it
is told where to begin, and nothing else; there is no loader state to save. So workers are forked
before CUDA and the process group begin, which must not be forked. Each worker owns a few slots,
memory of one batch each, that it fills in turn; the main process copies a finished slot into a
batch and gives the slot back. Only the strings of a batch go through the pipes, so the main process
spends its time on training. The memory has no name: nothing is left behind, whatever kills the run.

A worker that dies, or does not answer for long, ends the run with a sentence. A worker whose
run has died ends by itself.

Where shards come from a server or a shared file system, one more process brings those of the
windows ahead nearer (:mod:`t2i_hpc.data.storage.prefetch`).
"""

from __future__ import annotations

import contextlib
import itertools
import mmap
import multiprocessing
import os
import signal
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from multiprocessing.util import Finalize
from typing import NamedTuple, Protocol

import numpy as np
import torch

from t2i_hpc.common.errors import RunError, UserError
from t2i_hpc.common.process import keep_freed_memory, stop_signals_blocked
from t2i_hpc.data.batches import Arrays, Batch, BatchMaker, BatchPlan, Texts
from t2i_hpc.data.sampler import I64, RankSlice
from t2i_hpc.data.storage.prefetch import Lookahead, Prefetcher

MakerFrom = Callable[[int], BatchMaker]  # of the samples seen when its batches begin
_SLOTS = 3  # of a worker: one is copied while two are made ahead
_LOOK_FOR_PARENT = 2.0  # seconds
_STEP = 5.0  # seconds
_BEFORE_WAITING = 10  # Python waits for child processes after the finalizers of 0 and more
_FREE = b"free"
_COUNTS = 3  # found, missed, bytes


@dataclass(frozen=True)
class _Crash:
    """An error of ours on its way out of a worker."""

    trace: str


_Answer = Texts | UserError | _Crash


class ReadCounts(NamedTuple):
    """What a rank's loader has read since it started.

    Attributes:
        found: samples whose shard was on the node.
        missed: samples whose shard had to be waited for.
        bytes: that came from a server: of the whole node's prefetcher, and of this rank.
    """

    found: int = 0
    missed: int = 0
    bytes: int = 0


class Loader:
    """Makes a rank's batches, by processes or, where there are none, in this one.

    Args:
        make: returns what makes the batches from a number of samples seen on.
        rank_slice: this rank's slice of each global batch.
        workers: number of processes.
        answer_within: seconds without a batch after which a process counts as stuck.
        lookahead: what is prefetched; None: nothing.
    """

    def __init__(
        self,
        make: MakerFrom,
        rank_slice: RankSlice,
        workers: int,
        answer_within: float,
        lookahead: Lookahead | None = None,
    ) -> None:
        self._make, self._slice = make, rank_slice
        self._workers, self._answer_within = workers, answer_within
        self._processes: list[_Worker] = []
        self._lookahead = lookahead
        self._prefetcher: Prefetcher | None = None
        counts = mmap.mmap(-1, _COUNTS * 8 * max(1, workers))
        self._counts: I64 = np.frombuffer(counts, np.int64).reshape(-1, _COUNTS)

    def start(self, likely: int | None = None) -> None:
        """Start the processes, which then wait to be told where to begin.

        They are forked, so this comes before CUDA and the process group: neither survives in a
        process that is forked after it.

        Args:
            likely: position at which the batches will probably begin: shards are fetched from now
                on, while a model is built. None: not known.
        """
        if self._lookahead and self._prefetcher is None:
            self._prefetcher = Prefetcher(self._lookahead)
        if likely is not None:
            self._move(likely)
        numbers = range(len(self._processes), self._workers)
        self._processes += [
            _Worker(self._make, self._slice, range(n, 2**62, self._workers), self._counts[n])
            for n in numbers
        ]

    def reads(self) -> ReadCounts:
        """Return what was read so far."""
        found, missed, count = self._counts.sum(axis=0).tolist()
        return ReadCounts(
            found, missed, count + (self._prefetcher.bytes if self._prefetcher else 0)
        )

    def batches(self, start: int) -> Iterator[Batch]:
        """Yield batch after batch, the first of which begins at position `start` ≥ 0.

        Closing the iterator ends the processes; they are started where none are waiting.

        Raises:
            UserError: a sample could not be read or decoded.
            RunError: a process died or does not answer.
        """
        self.start(start)
        started, self._processes = self._processes, []
        with contextlib.ExitStack() as stack:
            stack.callback(self._end_prefetch)
            for worker in started:
                stack.callback(worker.end)
            if self._prefetcher:
                self._prefetcher.await_plan()
            made = self._batches_of(started, start) if started else self._batches_here(start)
            for number, batch in enumerate(made, 1):
                yield batch
                self._move(start + number * self._slice.batch_size)

    def _move(self, position: int) -> None:
        """Tell the prefetcher where the training is, and how far the processes may be."""
        if self._prefetcher:
            ahead = (_SLOTS * self._workers + 1) * self._slice.batch_size
            self._prefetcher.move(position, position + ahead)

    def _end_prefetch(self) -> None:
        if self._prefetcher:
            self._prefetcher.end()
            self._prefetcher = None

    def _batches_of(self, started: Sequence[_Worker], start: int) -> Iterator[Batch]:
        for worker in started:
            worker.begin(start)
        for worker in itertools.cycle(started):
            yield worker.next(self._answer_within)

    def _batches_here(self, start: int) -> Iterator[Batch]:
        maker = self._make(start)
        layout = maker.layout(self._slice.size)
        for plan in maker.plan(map(partial(self._slice.positions, start), itertools.count())):
            block = layout.new()
            made = layout.batch(block, maker.fill(plan, layout.arrays(block)))
            self._counts[0] = maker.reads()
            yield made

    def close(self) -> None:
        """End processes that wait."""
        self._end_prefetch()
        while self._processes:
            self._processes.pop().end()


class OpenLoader(Protocol):
    """Opens what makes a rank's batches."""

    def __call__(
        self, resolution: int, seed: int, rank_slice: RankSlice, *, answer_within: float = 600.0
    ) -> Loader:
        """Return what makes a rank's batches from a number of samples seen on.

        Args:
            resolution: side of the images in pixels.
            seed: of order, captions and crops.
            rank_slice: this rank's slice of each global batch.
            answer_within: seconds without a batch after which a loader process counts as stuck.

        Raises:
            UserError: whatever is wrong with the data or its values.
        """


class _Worker:
    """A process and the main process's ends of what connects them."""

    def __init__(self, make: MakerFrom, rank_slice: RankSlice, numbers: range, counts: I64) -> None:
        self._layout = layout = make(0).layout(rank_slice.size)
        self._slots = [_shared(layout.bytes) for _ in range(_SLOTS)]
        self._turn = 0
        context = multiprocessing.get_context("fork")  # shares the memory and the open index
        self._link, theirs = context.Pipe()
        slots = list(map(layout.arrays, self._slots))
        work = _Work(make, rank_slice, numbers, slots, counts, os.getpid())
        links = (theirs, self._link)
        self._process: BaseProcess = context.Process(target=_fill, args=(work, *links), daemon=True)
        with stop_signals_blocked():
            self._process.start()
        # Before Python waits for its child processes, which block the signals that end them.
        self._at_exit = Finalize(None, self._process.kill, exitpriority=_BEFORE_WAITING)
        theirs.close()

    def begin(self, start: int) -> None:
        """Let it make batches from position `start` on."""
        with contextlib.suppress(OSError):  # its death is reported when its first batch is due
            self._link.send(start)

    def next(self, answer_within: float) -> Batch:
        answer = self._answer(answer_within)
        if isinstance(answer, UserError):
            raise answer
        if isinstance(answer, _Crash):
            raise RuntimeError(f"a loader process failed:\n{answer.trace}")
        block = self._layout.new().copy_(self._slots[self._turn])
        self._turn = (self._turn + 1) % _SLOTS
        with contextlib.suppress(OSError):  # its death is reported when its next batch is due
            self._link.send_bytes(_FREE)
        return self._layout.batch(block, answer)

    def end(self) -> None:
        """Kill the process: it has nothing to save, and blocks the signals that ask it to stop."""
        self._at_exit()
        self._process.join(_STEP)  # not for ever: a dead file system holds it
        self._link.close()

    def _answer(self, within: float) -> _Answer:
        deadline = time.monotonic() + within
        while not self._link.poll():
            if not wait([self._link, self._process.sentinel], _STEP):
                self._give_up_after(deadline, within)
            elif not self._link.poll() and not self._process.is_alive():
                raise RunError(self._death_message())
        try:
            answer: _Answer = self._link.recv()
        except (EOFError, ConnectionError) as error:
            self._process.join(_STEP)
            raise RunError(self._death_message()) from error
        return answer

    def _give_up_after(self, deadline: float, within: float) -> None:
        if time.monotonic() >= deadline:
            raise RunError(
                f"a loader process (pid {self._process.pid}) has made no batch for "
                f"{within:.0f} seconds: see whether the file system of data.path answers, or "
                "raise engine.timeout and data.retry_seconds; the same command resumes from the "
                "last checkpoint"
            )

    def _death_message(self) -> str:
        code = self._process.exitcode
        cause = f"exit code {code}"
        if code is not None and code < 0:
            cause = signal.Signals(-code).name
        return (
            f"a loader process (pid {self._process.pid}) died of {cause}: if the kernel killed "
            "it for lack of memory, lower data.workers or ask for more memory; the same command "
            "resumes from the last checkpoint"
        )


def _shared(count: int) -> torch.Tensor:
    """Return memory that forked processes share, uint8 (count,)."""
    return torch.frombuffer(mmap.mmap(-1, count), dtype=torch.uint8)


@dataclass(frozen=True)
class _Work:
    """What a worker knows: how batches are made, which are its own, where they go, and for whom.

    What it has read is counted in `counts`, which the main process sees.
    """

    make: MakerFrom
    rank_slice: RankSlice
    numbers: range
    slots: Sequence[Arrays]
    counts: I64
    parent: int

    def begin(self, start: int) -> tuple[BatchMaker, Iterator[BatchPlan]]:
        """Return what makes the batches from position `start` on, and the plans of its own."""
        maker = self.make(start)
        return maker, maker.plan(map(partial(self.rank_slice.positions, start), self.numbers))


def _fill(work: _Work, link: Connection, parents_end: Connection) -> None:
    """Fill slot after slot until the main process is gone."""
    parents_end.close()
    keep_freed_memory()
    torch.set_num_threads(1)  # OpenMP's threads do not survive a fork
    with contextlib.suppress(BrokenPipeError, EOFError, ConnectionError):
        _await_message(link, work.parent)
        maker, plans = work.begin(link.recv())
        for turn in itertools.count():
            if turn >= len(work.slots):
                _await_message(link, work.parent)
                link.recv_bytes()
            answer = _make(maker, plans, work.slots[turn % len(work.slots)])
            work.counts[:] = maker.reads()
            link.send(answer)
            if not isinstance(answer, Texts):
                return


def _make(maker: BatchMaker, plans: Iterator[BatchPlan], slot: Arrays) -> _Answer:
    """Plan and make the next batch."""
    try:
        return maker.fill(next(plans), slot)
    except UserError as error:
        return error
    except Exception:  # whatever it is, it must be seen where people look
        return _Crash(traceback.format_exc())


def _await_message(link: Connection, parent: int) -> None:
    """Wait for a message of the main process: where to begin, or that a slot is free.

    Raises:
        EOFError: the main process is gone. Its death need not end the pipe, whose other end is
            also open in the processes that were forked later.
    """
    while not link.poll(_LOOK_FOR_PARENT):
        if os.getppid() != parent:
            raise EOFError
