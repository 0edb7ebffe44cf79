"""Processes on this machine: the ranks of a task, and evaluations that a training starts.

Each rank gets torchrun's variables and a free port. When one dies the others have a while to find
that out and say what they know; then they are ended. Signals are passed on to all.
"""

from __future__ import annotations

import contextlib
import os
import random
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from t2i_hpc.cluster.jobs import JOBS_FOLDER, Plan
from t2i_hpc.cluster.network import ports, without_chosen_interface
from t2i_hpc.cluster.slurm.client import CLIENT_SETTINGS
from t2i_hpc.common.errors import LOST_RANK, ClusterError
from t2i_hpc.common.process import STOP_SIGNALS, handled_signals
from t2i_hpc.common.terminal import say

_POLL_SECONDS = 0.1
_TRIES = 200
_GRACE_SECONDS = 15.0  # longer than a rank takes to miss another
_LAST_SECONDS = 10.0
_LAUNCHERS = ("SLURM_", "SLURMD_", "SRUN_", "PMI_", "PMIX_", "OMPI_", "SUBMITIT_", "TORCHELASTIC_")
_RANKS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def run_ranks(task: str, arguments: Sequence[str], processes: int) -> int:
    """Run ``python -m t2i_hpc.<task> arguments…`` as that many ranks; return the exit code.

    The code is 0 when all ranks ended with 0, else the first that is the cause of an end; where a
    signal ended a rank, that of a lost rank. Such a signal is reported on standard error.
    """
    port = free_port()
    command = [sys.executable, "-m", f"t2i_hpc.{task}", *arguments]
    ranks: list[subprocess.Popen[bytes]] = []
    with _passing_on(ranks):
        try:
            for rank in range(processes):
                place = rank_environment(rank, processes, port)
                # A session of its own: a Ctrl-C of the terminal reaches it once, through us.
                ranks.append(subprocess.Popen(command, env=place, start_new_session=True))
            return _wait(ranks)
        finally:
            _end(ranks)


def run_plan(plan: Plan, processes: int) -> int:
    """Run works one after the other; the first that fails is the last. Return its exit code."""
    for number, work in enumerate(plan.works):
        say(f"{number + 1} of {len(plan.works)}: {work.folder}")
        if code := run_ranks(work.task, work.arguments, processes):
            return code
    return 0


def show_plan(plan: Plan, processes: int) -> int:
    """Print the commands of a plan."""
    ranks = f"  # {processes} processes" if processes > 1 else ""
    for work in plan.works:
        say(f"{shlex.join(['python', '-m', f't2i_hpc.{work.task}', *work.arguments])}{ranks}")
    return 0


class BackgroundEvaluations:
    """Runs evaluations of one run beside its training, one after the other.

    With ``cluster=slurm`` among the overrides each becomes a job of its own, submitted as by
    ``t2i_hpc.launch`` on a login node. Otherwise it shares the GPU or cores with the training,
    which is slower meanwhile.

    Args:
        run: the run directory.
        overrides: of the evaluation, and where it runs, e.g. ``cluster=slurm``.
    """

    def __init__(self, run: Path, overrides: Sequence[str]) -> None:
        self._run, self._overrides = run, tuple(overrides)
        self._queue = ThreadPoolExecutor(1, "evaluations")
        self._asked: list[tuple[int, Future[int]]] = []
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, images: int) -> str:
        """Queue the evaluation of a checkpoint; return a line for the log."""
        before = sum(not result.done() for _, result in self._asked)
        self._asked.append((images, self._queue.submit(self._evaluate, images)))
        waits = f", after {before} before it" if before else ""
        return f"evaluation of {images:,} images{waits}: see {self._log(images)}"

    def busy(self) -> bool:
        """Whether an evaluation runs or waits."""
        return not all(result.done() for _, result in self._asked)

    def close(self, say: Callable[[str], None]) -> None:
        """Report evaluations that failed; end the one that runs and drop those that wait."""
        for images, result in self._asked:
            if result.done() and (code := result.result()):
                say(f"the evaluation of {images:,} images failed ({code}): {self._log(images)}")
        self._queue.shutdown(wait=False, cancel_futures=True)
        if self._process:
            self._process.terminate()

    def _log(self, images: int) -> Path:
        return self._run / JOBS_FOLDER / f"evaluation-{images:010d}.log"

    def _evaluate(self, images: int) -> int:
        # The training blocks signals until it listens. A child would inherit that, and never hear
        # that it is to end.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
        arguments = ["task=evaluate", f"run={self._run}", f"checkpoint={images}"]
        log = self._log(images)
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "t2i_hpc.launch", *arguments, *self._overrides],
                env=without_launcher(os.environ),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )
        return self._process.wait()


def rank_environment(rank: int, processes: int, port: int) -> dict[str, str]:
    """Return the environment of one rank, in torchrun's variables."""
    return {
        **os.environ,
        "RANK": str(rank),
        "WORLD_SIZE": str(processes),
        "LOCAL_RANK": str(rank),
        "LOCAL_WORLD_SIZE": str(processes),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }


def free_port() -> int:
    """Return a port of the loopback address that nobody listens on.

    Not one that the system may give to an outgoing connection before the ranks listen there.
    """
    for port in random.sample(ports(), _TRIES):
        with socket.socket() as listener, contextlib.suppress(OSError):
            listener.bind(("127.0.0.1", port))
            return port
    raise ClusterError(f"no port of 127.0.0.1 from {ports()[0]} to {ports()[-1]} is free")


def without_launcher(environment: Mapping[str, str]) -> dict[str, str]:
    """Return an environment without the variables of a rank or a job.

    What a user set for all of Slurm's clients stays.
    """
    return {
        name: value
        for name, value in without_chosen_interface(environment).items()
        if name in CLIENT_SETTINGS or not (name.startswith(_LAUNCHERS) or name in _RANKS)
    }


def _wait(ranks: Sequence[subprocess.Popen[bytes]]) -> int:
    """Return when all ranks ended with 0, or one did otherwise and the others had time for it."""
    while True:
        codes = [rank.poll() for rank in ranks]
        if any(codes):
            _report_signals(ranks)
            _wait_for_all(ranks, _GRACE_SECONDS)
            return _code_of_all([rank.poll() for rank in ranks])
        if all(code == 0 for code in codes):
            return 0
        time.sleep(_POLL_SECONDS)


def _report_signals(ranks: Sequence[subprocess.Popen[bytes]]) -> None:
    for number, rank in enumerate(ranks):
        if rank.returncode is not None and rank.returncode < 0:
            name = signal.strsignal(-rank.returncode)
            say(
                f"t2i_hpc: rank {number} (pid {rank.pid}) was ended by signal "
                f"{-rank.returncode} ({name})",
                sys.stderr,
            )


def _code_of_all(codes: Sequence[int | None]) -> int:
    """Choose among exit codes, of which one is not 0: causes before effects."""
    own = [code for code in codes if code and code > 0]
    causes = [code for code in own if code != LOST_RANK]
    if own:
        return (causes or own)[0]
    killed = min(code for code in codes if code)
    return LOST_RANK if len(codes) > 1 else 128 - killed


def _wait_for_all(ranks: Sequence[subprocess.Popen[bytes]], seconds: float) -> None:
    end = time.monotonic() + seconds
    while any(rank.poll() is None for rank in ranks) and time.monotonic() < end:
        time.sleep(_POLL_SECONDS)


def _end(ranks: Sequence[subprocess.Popen[bytes]]) -> None:
    """End what still runs, with its loader processes: SIGTERM, then SIGKILL."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        alive = [rank for rank in ranks if rank.poll() is None]
        for rank in alive:
            _signal_session(rank, number)
        _wait_for_all(alive, _LAST_SECONDS)


def _signal_session(rank: subprocess.Popen[bytes], number: signal.Signals) -> None:
    try:
        os.killpg(rank.pid, number)
    except ProcessLookupError:
        return


@contextmanager
def _passing_on(ranks: Sequence[subprocess.Popen[bytes]]) -> Iterator[None]:
    """Pass signals of this process on to the ranks, which decide what they mean."""

    def pass_on(number: int, frame: FrameType | None) -> None:
        for rank in ranks:
            if rank.poll() is None:
                rank.send_signal(number)

    before = {number: signal.signal(number, pass_on) for number in handled_signals()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
