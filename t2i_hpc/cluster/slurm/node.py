"""What a task of a job does first on its node: become the task.

This is all that submitit pickles. It knows a command line and nothing of a run, so a job that is
started again reads what it needs from the run directory, never from a pickle.
"""

from __future__ import annotations

import os
import signal
import sys
from dataclasses import dataclass
from typing import NoReturn

from t2i_hpc.common.process import STOP_SIGNALS

_LISTENING = ("train", "pretrain")


@dataclass(frozen=True)
class Start:
    """Replaces its process with ``python -m t2i_hpc.<task> words…``.

    Attributes:
        task: name of the command.
        words: its command line.
        folder: where the job is recorded; "" where an earlier version submitted it.
    """

    task: str
    words: tuple[str, ...]
    folder: str = ""

    def __call__(self) -> NoReturn:
        """Become the task; a signal in the seconds of its imports waits until it listens."""
        module = [f"t2i_hpc.{self.task}"]
        if self.task in _LISTENING:
            signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
        elif self.folder:
            module = ["t2i_hpc.cluster.slurm.task", self.folder, self.task]
        command = [sys.executable, "-u", "-m", *module, *self.words]
        os.execv(command[0], command)
