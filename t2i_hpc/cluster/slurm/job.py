"""What a batch script calls before, during and after its task.

python -m t2i_hpc.cluster.slurm.job FOLDER begin   # before srun; other codes than 0: do not start
python -m t2i_hpc.cluster.slurm.job FOLDER TERM    # Slurm ends the job while its task runs
python -m t2i_hpc.cluster.slurm.job FOLDER CODE    # the task ended with this exit code

FOLDER is where the job was recorded by `t2i_hpc.launch`; for a script submitted by hand it is
the run directory, and the defaults of ``cluster`` hold. No torch is imported: each takes a tenth
of a second.
"""

from __future__ import annotations

import sys
from pathlib import Path


def main(folder: Path, what: str) -> int:
    """Do one of the three; return the exit code."""
    from t2i_hpc.cluster.slurm.epilogue import afterwards, on_term
    from t2i_hpc.cluster.slurm.prologue import prologue

    if what == "begin":
        return prologue(folder)
    if what == "TERM":
        on_term(folder)
        return 0
    return afterwards(folder, int(what))


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2]))
