"""Batches that processes make ahead, in memory that they share with the one that trains.

Batch n is made by worker n modulo their number, and a worker knows from the plan which samples
those are: nobody is told what to do. Each worker owns a few slots, memory of one batch each,
that it fills in turn; the main process copies a finished slot into a batch and gives the slot
back. What goes through the pipes are a few words of text, so the main process spends its time
on training. The memory has no name: nothing is left behind, whatever kills the run.

A worker that dies, or does not answer for long, ends the run with a sentence. A worker whose
run has died ends by itself.
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
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from multiprocessing.util import Finalize

import torch

from t2i_hpc.common.allocator import keep_freed_memory
from t2i_hpc.common.errors import RunError, UserError
from t2i_hpc.common.step import Batch
from t2i_hpc.common.stop_signals import STOP_SIGNALS
from t2i_hpc.config.data import DataConfig
from t2i_hpc.data.arrays import Arrays, Texts
from t2i_hpc.data.batch_maker import BatchMaker, Planned

Positions = Callable[[int], Sequence[int]]
_SLOTS = 3  # of a worker: one is copied while two are made ahead
_LOOK_FOR_PARENT = 2.0  # seconds
_STEP = 5.0  # seconds
_BEFORE_WAITING = 10  # Python waits for child processes after the finalizers of 0 and more
_FREE = b"free"


@dataclass(frozen=True)
class _Crash:
    """An error of ours on its way out of a worker."""

    trace: str


_Answer = Texts | UserError | _Crash


def load(
    maker: BatchMaker, positions: Positions, config: DataConfig, answer_within: float
) -> Iterator[Batch]:
    """Yield batch after batch, made by as many processes as the configuration says.

    Closing the iterator ends the processes.

    Args:
        maker: what makes them.
        positions: which samples batch number n = 0, 1, 2, … is made of.
        config: how many processes.
        answer_within: seconds without a batch after which a process counts as stuck.

    Raises:
        UserError: a sample could not be read or decoded.
        RunError: a process died or does not answer.
    """
    if not config.workers:
        return load_here(maker, positions)
    return load_ahead(maker, positions, config.workers, answer_within)


def load_here(samples: BatchMaker, positions: Positions) -> Iterator[Batch]:
    """Yield batch after batch, made in this process when it is asked for.

    Args:
        samples: what makes them.
        positions: which samples batch number n = 0, 1, 2, … is made of; each as many.
    """
    layout = samples.layout(len(positions(0)))
    for planned in samples.plan(map(positions, itertools.count())):
        block = layout.new()
        yield layout.batch(block, samples.fill(planned, layout.arrays(block)))


def load_ahead(
    samples: BatchMaker, positions: Positions, workers: int, patience: float
) -> Iterator[Batch]:
    """Yield the batches of :func:`load_here`, made ahead by processes.

    Closing the iterator ends the processes.

    Args:
        samples: what makes them.
        positions: which samples batch number n is made of.
        workers: number of processes ≥ 1.
        patience: seconds that may pass without a batch before the run is given up.

    Raises:
        UserError: what a worker could not read or decode.
        RunError: a worker died or does not answer.
    """
    with contextlib.ExitStack() as stack:
        team = []
        for number in range(workers):
            team.append(_Worker(samples, positions, range(number, 2**62, workers)))
            stack.callback(team[-1].end)
        while True:
            for worker in team:
                yield worker.next(patience)


class _Worker:
    """A process and the main process's ends of what connects them."""

    def __init__(self, samples: BatchMaker, positions: Positions, numbers: range) -> None:
        self._layout = layout = samples.layout(len(positions(0)))
        self._slots = [_shared(layout.bytes) for _ in range(_SLOTS)]
        self._turn = 0
        context = multiprocessing.get_context("fork")  # shares the memory and the open index
        self._link, theirs = context.Pipe()
        work = _Work(samples, positions, numbers, list(map(layout.arrays, self._slots)))
        links = (theirs, self._link)
        self._process: BaseProcess = context.Process(target=_fill, args=(work, *links), daemon=True)
        with _signals_held():
            self._process.start()
        # Before Python waits for its child processes, which do not hear that they are to end.
        self._at_exit = Finalize(None, self._process.kill, exitpriority=_BEFORE_WAITING)
        theirs.close()

    def next(self, patience: float) -> Batch:
        answer = self._answer(patience)
        if isinstance(answer, UserError):
            raise answer
        if isinstance(answer, _Crash):
            raise RuntimeError(f"a loader process failed:\n{answer.trace}")
        block = self._layout.new().copy_(self._slots[self._turn])
        self._turn = (self._turn + 1) % _SLOTS
        with contextlib.suppress(OSError):  # its death is told when its next batch is due
            self._link.send_bytes(_FREE)
        return self._layout.batch(block, answer)

    def end(self) -> None:
        """Kill the process: it has nothing to save, and signals that ask it does not hear."""
        self._at_exit()
        self._process.join(_STEP)  # not for ever: a dead file system holds it
        self._link.close()

    def _answer(self, patience: float) -> _Answer:
        deadline = time.monotonic() + patience
        while not self._link.poll():
            if not wait([self._link, self._process.sentinel], _STEP):
                self._give_up_after(deadline, patience)
            elif not self._link.poll() and not self._process.is_alive():
                raise RunError(self._obituary())
        try:
            answer: _Answer = self._link.recv()
        except (EOFError, ConnectionError) as error:
            self._process.join(_STEP)
            raise RunError(self._obituary()) from error
        return answer

    def _give_up_after(self, deadline: float, patience: float) -> None:
        if time.monotonic() >= deadline:
            raise RunError(
                f"a loader process (pid {self._process.pid}) has made no batch for "
                f"{patience:.0f} seconds: see whether the file system of data.path answers, or "
                "raise engine.timeout and data.patience; the same command resumes from the last "
                "checkpoint"
            )

    def _obituary(self) -> str:
        code = self._process.exitcode
        cause = f"exit code {code}"
        if code is not None and code < 0:
            cause = signal.Signals(-code).name
        return (
            f"a loader process (pid {self._process.pid}) died of {cause}: if it was the kernel "
            "for want of memory, lower data.workers or ask for more memory; the same command "
            "goes on from the last checkpoint"
        )


def _shared(count: int) -> torch.Tensor:
    """Return memory that forked processes share, uint8 (count,)."""
    return torch.frombuffer(mmap.mmap(-1, count), dtype=torch.uint8)


@dataclass(frozen=True)
class _Work:
    """What a worker knows: how batches are made, which are its own, and where it puts them."""

    samples: BatchMaker
    positions: Positions
    numbers: range
    slots: Sequence[Arrays]


def _fill(work: _Work, link: Connection, parents_end: Connection) -> None:
    """Fill slot after slot until the main process is gone."""
    parents_end.close()
    keep_freed_memory()
    torch.set_num_threads(1)  # OpenMP's threads do not survive a fork
    with contextlib.suppress(BrokenPipeError, EOFError, ConnectionError):
        plan = work.samples.plan(map(work.positions, work.numbers))
        for place in itertools.count():
            if place >= len(work.slots):
                _await_free_slot(link)
            answer = _make(work.samples, plan, work.slots[place % len(work.slots)])
            link.send(answer)
            if not isinstance(answer, Texts):
                return


def _make(samples: BatchMaker, plan: Iterator[Planned], slot: Arrays) -> _Answer:
    """Plan and make the next batch."""
    try:
        return samples.fill(next(plan), slot)
    except UserError as error:
        return error
    except Exception:  # whatever it is, it must be seen where people look
        return _Crash(traceback.format_exc())


def _await_free_slot(link: Connection) -> None:
    """Wait until a slot is given back.

    Raises:
        EOFError: the main process is gone. Siblings hold copies of its pipe, so that its end
            may not show as the pipe's end.
    """
    parent = os.getppid()
    while not link.poll(_LOOK_FOR_PARENT):
        if os.getppid() != parent:
            raise EOFError
    link.recv_bytes()


@contextlib.contextmanager
def _signals_held() -> Iterator[None]:
    """Start a process that never hears stop signals; the main process hears them afterwards.

    Slurm signals every process of a job; a loader that died of it would take the run down
    before its checkpoint is written.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
