"""Evaluations that a training starts: jobs of their own, or a process beside it.

With ``cluster=slurm`` among the words each is submitted as ``t2i_hpc.launch`` would from a login
node. Otherwise one process at a time works on this machine; where the training shares its GPU or
cores with it, it is slower meanwhile.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from t2i_hpc.cluster.jobs import JOBS_FOLDER
from t2i_hpc.cluster.network import without_chosen_interface
from t2i_hpc.cluster.slurm.client import SETTINGS_OF_PEOPLE
from t2i_hpc.common.process import STOP_SIGNALS

_LAUNCHERS = ("SLURM_", "SLURMD_", "SRUN_", "PMI_", "PMIX_", "OMPI_", "SUBMITIT_", "TORCHELASTIC_")
_RANKS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


class EvaluationsBeside:
    """Starts evaluations of one run, one after the other.

    Args:
        run: the run directory.
        words: the evaluation's own words, and where it goes, e.g. ``cluster=slurm``.
    """

    def __init__(self, run: Path, words: Sequence[str]) -> None:
        self._run, self._words = run, tuple(words)
        self._queue = ThreadPoolExecutor(1, "evaluations")
        self._asked: list[tuple[int, Future[int]]] = []
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, images: int) -> str:
        """Put the evaluation of a checkpoint into the queue; return a line for people."""
        before = sum(not result.done() for _, result in self._asked)
        self._asked.append((images, self._queue.submit(self._evaluate, images)))
        waits = f", after {before} before it" if before else ""
        return f"evaluation of {images:,} images{waits}: see {self._log(images)}"

    def busy(self) -> bool:
        """Whether an evaluation runs or waits."""
        return not all(result.done() for _, result in self._asked)

    def close(self, say: Callable[[str], None]) -> None:
        """Tell of evaluations that failed; end the one that runs and forget those that wait."""
        for images, result in self._asked:
            if result.done() and (code := result.result()):
                say(f"the evaluation of {images:,} images failed ({code}): {self._log(images)}")
        self._queue.shutdown(wait=False, cancel_futures=True)
        if self._process:
            self._process.terminate()

    def _log(self, images: int) -> Path:
        return self._run / JOBS_FOLDER / f"evaluation-{images:010d}.log"

    def _evaluate(self, images: int) -> int:
        # Signals may be held back until the training listens: what is started here would inherit
        # that, and not hear that it is to end.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
        words = ["task=evaluate", f"run={self._run}", f"checkpoint={images}", *self._words]
        log = self._log(images)
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "t2i_hpc.launch", *words],
                env=without_launcher(os.environ),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )
        return self._process.wait()


def without_launcher(environment: Mapping[str, str]) -> dict[str, str]:
    """Return an environment without what says that this process is a rank or part of a job.

    What a person set for all of Slurm's clients stays.
    """
    return {
        name: value
        for name, value in without_chosen_interface(environment).items()
        if name in SETTINGS_OF_PEOPLE or not (name.startswith(_LAUNCHERS) or name in _RANKS)
    }
