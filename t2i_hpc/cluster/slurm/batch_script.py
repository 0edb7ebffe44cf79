"""The lines around a task's ``srun`` that let its job resume, the same in every batch script.

`t2i_hpc.launch` writes them into the script that it submits; the scripts in ``slurm/`` hold them
word for word, which a test compares. They expect an array ``job``: how to run
:mod:`t2i_hpc.cluster.slurm.job` for the job's folder.
"""

from __future__ import annotations

BEFORE = (
    "# Slurm's TERM (time limit, preemption) ends this script together with the tasks. srun runs",
    "# beside the script, so that bash answers it at once: whatever the tasks still do, the job is",
    "# requeued.",
    "trap '\"${job[@]}\" TERM || true' TERM",
    '"${job[@]}" begin || exec "${job[@]}" $?',
)

BESIDE = " & step=$!"

AFTER = (
    "while wait $step; code=$?; kill -0 $step 2>/dev/null; do :; done",
    "# It may have ended while bash answered TERM: then this knows how.",
    "wait $step 2>/dev/null && code=0 || { late=$?; [ $late = 127 ] || code=$late; }",
    "trap '' TERM # requeueing the job ends this script, too",
    'exec "${job[@]}" $code',
)


def job_line(python: str, folder: str) -> str:
    """Return the line that defines ``job``; both arguments are words of a shell."""
    return f"job=({python} -m t2i_hpc.cluster.slurm.job {folder})"
