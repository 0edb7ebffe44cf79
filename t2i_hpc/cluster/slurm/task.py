"""How a task of a job becomes ``python -m t2i_hpc.<task>`` on its node.

:class:`TaskCommand` is all that submitit pickles. It knows a command line and nothing of a run, so
a job that starts again reads what it needs from the run directory, never from a pickle.

python -m t2i_hpc.cluster.slurm.task FOLDER TASK ARGUMENTS…

A training saves at SIGTERM and requeues its job itself. Evaluations and builds have nothing to
save, and are run by this module: their first rank asks Slurm why it is being ended, and requeues
the job where its batch script was killed, before it ends as SIGTERM ends any process.
"""

from __future__ import annotations

import os
import runpy
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from t2i_hpc.common.process import STOP_SIGNALS

_LISTENING = ("train", "pretrain")


@dataclass(frozen=True)
class TaskCommand:
    """Replaces its process with ``python -m t2i_hpc.<task> arguments…``.

    Attributes:
        task: name of the command.
        arguments: its command line.
        folder: where the job is recorded.
    """

    task: str
    arguments: tuple[str, ...]
    folder: str

    def __call__(self) -> NoReturn:
        """Become the task; a signal in the seconds of its imports waits until it listens."""
        if self.task in _LISTENING:
            module = [f"t2i_hpc.{self.task}"]
            signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
        else:
            module = ["t2i_hpc.cluster.slurm.task", self.folder, self.task]
        command = [sys.executable, "-u", "-m", *module, *self.arguments]
        os.execv(command[0], command)


def main(folder: Path, task: str, arguments: Sequence[str]) -> None:
    """Be ``python -m t2i_hpc.<task> arguments…``.

    Args:
        folder: where the job is recorded.
        task: name of the command.
        arguments: its command line.
    """
    if os.environ.get("SLURM_PROCID") == "0":
        _requeue_at_term(folder)
    sys.argv = [sys.argv[0], *arguments]
    runpy.run_module(f"t2i_hpc.{task}", run_name="__main__", alter_sys=True)


def _requeue_at_term(folder: Path) -> None:
    def end(*_: object) -> None:
        from t2i_hpc.cluster.slurm.requeue import on_term

        # The requeue makes Slurm send TERM again, to this process and to scontrol, which inherits.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        try:
            on_term(folder)
        finally:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGTERM)

    signal.signal(signal.SIGTERM, end)
    # Workers are ended by SIGTERM, too.
    os.register_at_fork(after_in_child=lambda: signal.signal(signal.SIGTERM, signal.SIG_DFL))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3:])
