"""This process: how its threads wait, how it keeps memory, which signals stop it, how it exits.

Imports no torch: the package sets OpenMP up before torch is imported.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, MutableMapping
from functools import partial
from typing import NoReturn, TypeAlias

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


@contextlib.contextmanager
def stop_signals_blocked() -> Iterator[None]:
    """Block stop signals in processes that start here; this one gets them afterwards.

    Slurm signals every process of a job; a loader that died of it would take the run down
    before its checkpoint is written.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def handled_signals() -> list[signal.Signals]:
    """Return the stop signals without a hang-up that ``nohup`` told this process to ignore."""
    ignored = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    return [number for number in STOP_SIGNALS if number != signal.SIGHUP or not ignored]


ExitHook: TypeAlias = Callable[[int, str, tuple[str, ...]], None]
"""Is called with the exit code, the sentence, and the hosts of lost ranks."""

_SHOW_CURSOR = b"\x1b[?25h"
_BRIEF_SECONDS = 2.0
_exit_hooks: list[ExitHook] = []


def exit_at_once(code: int, sentence: str = "", lost_hosts: tuple[str, ...] = ()) -> NoReturn:
    """End the process from any thread, with a sentence on standard error.

    A main thread inside a collective hears no signal and no exception, so it is not asked. What a
    run saved is whole on the disk at every instant; only exit hooks get a moment.
    """
    with contextlib.suppress(OSError):  # that nobody reads it must not keep the process
        if sys.stdout is not None and sys.stdout.isatty():
            os.write(1, _SHOW_CURSOR)  # which a live line hides
    with contextlib.suppress(OSError):
        if sentence:
            os.write(2, f"{sentence}\n".encode())
    for hook in list(_exit_hooks):
        briefly(partial(hook, code, sentence, lost_hosts))
    os._exit(code)


def add_exit_hook(hook: ExitHook) -> None:
    """Let :func:`exit_at_once` call a function first."""
    _exit_hooks.append(hook)


def remove_exit_hook(hook: ExitHook) -> None:
    """Forget a function that :func:`add_exit_hook` was given."""
    with contextlib.suppress(ValueError):
        _exit_hooks.remove(hook)


def briefly(work: Callable[[], None]) -> None:
    """Do what must not hold up an exit; a disk that does not answer is given up on."""
    thread = threading.Thread(target=work, name="exit hook", daemon=True)
    with contextlib.suppress(RuntimeError):  # no thread starts any more
        thread.start()
        thread.join(_BRIEF_SECONDS)


_TRIM_THRESHOLD, _MMAP_MAX = -1, -4
_LATE = 2**31 - 1


def keep_freed_memory() -> bool:
    """Tell glibc to reuse large blocks; return whether the C library understood.

    On a CPU torch frees and takes tensors of many megabytes all the time. glibc maps each anew,
    and the kernel clears every page again: up to 40 % of the time of a small training here. The
    peak of memory stays the same.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    return bool(mallopt(_MMAP_MAX, 0)) and bool(mallopt(_TRIM_THRESHOLD, _LATE))


POLICY = "OMP_WAIT_POLICY"  # what other OpenMPs than GNU's read
SPINS = "GOMP_SPINCOUNT"  # GNU's own, which goes before the policy
# GNU's OpenMP, which torch brings, spins for about 3 ms between two operations: on a machine with
# other work (loader processes, other ranks, other people's jobs) that takes the cores which this
# work needs, and a step on two threads takes up to a hundred times as long. Threads that sleep at
# once wake too late on an idle machine, where two of them can be slower than one. A tenth of a
# millisecond costs little in either case (benchmarks/busy.py).
OURS = {POLICY: "PASSIVE", SPINS: "10000"}
_SETTINGS = (POLICY, SPINS, "KMP_BLOCKTIME")  # OpenMP's own, GNU's, Intel's


def wait_briefly(environment: MutableMapping[str, str]) -> None:
    """Let waiting OpenMP threads sleep soon, unless the environment says how they wait already.

    OpenMP reads it once, when torch is imported; processes started later inherit it.
    """
    if not any(name in environment for name in _SETTINGS):
        environment.update(OURS)
