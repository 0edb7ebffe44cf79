"""A task that starts again where it was, run so that it requeues its own job if nobody else can.

python -m t2i_hpc.cluster.slurm.task FOLDER TASK words…

A training saves at SIGTERM and sees to its job itself. Evaluations and builds have nothing to save:
their first rank asks Slurm why it is being ended, and requeues the job where its batch script was
killed, before it ends as SIGTERM ends any process.
"""

from __future__ import annotations

import os
import runpy
import signal
import sys
from collections.abc import Sequence
from pathlib import Path


def main(folder: Path, task: str, words: Sequence[str]) -> None:
    """Be ``python -m t2i_hpc.<task> words…``.

    Args:
        folder: where the job is recorded.
        task: name of the command.
        words: its command line.
    """
    if os.environ.get("SLURM_PROCID") == "0":
        _see_to_job(folder)
    sys.argv = [sys.argv[0], *words]
    runpy.run_module(f"t2i_hpc.{task}", run_name="__main__", alter_sys=True)


def _see_to_job(folder: Path) -> None:
    def end(*_: object) -> None:
        from t2i_hpc.cluster.slurm.epilogue import on_term

        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        try:
            on_term(folder)
        finally:
            os.kill(os.getpid(), signal.SIGTERM)

    signal.signal(signal.SIGTERM, end)
    # Workers are ended by SIGTERM, too.
    os.register_at_fork(after_in_child=lambda: signal.signal(signal.SIGTERM, signal.SIG_DFL))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3:])
