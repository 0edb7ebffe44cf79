"""What a batch script calls before, during and after its task.

python -m t2i_hpc.cluster.slurm.job FOLDER begin   # before srun; other codes than 0: do not start
python -m t2i_hpc.cluster.slurm.job FOLDER TERM    # Slurm ends the job while its task runs
python -m t2i_hpc.cluster.slurm.job FOLDER CODE    # the task ended with this exit code

FOLDER is where the job was recorded by `t2i_hpc.launch`; for a script submitted by hand it is
the run directory, and the defaults of ``cluster`` hold. No torch is imported: each takes a tenth
of a second.

What the end of a task means for its job is in :mod:`t2i_hpc.cluster.slurm.requeue`.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Sequence
from pathlib import Path

from t2i_hpc.cluster.slurm.client import states_of
from t2i_hpc.cluster.slurm.current_job import (
    CurrentJob,
    read_current_job,
    show_job,
)
from t2i_hpc.cluster.slurm.requeue import epilogue, gives_up, on_term
from t2i_hpc.cluster.slurm.starts import note_begin, read_starts
from t2i_hpc.cluster.slurm.successors import ensure_successor, wait_for_successors
from t2i_hpc.common.errors import GAVE_UP, NOTHING_LEFT, ClusterError, resumes
from t2i_hpc.common.terminal import say_in_log

_USER_ERROR = 2
_RECORD_SECONDS = 5.0
_NOT_SEEN = 66  # of no program: srun itself ends with 2, e.g. where a node finds no bash
_NODES_SECONDS = 120.0
_LOOK = (
    'for path in "$@"; do [ -e "$path" ] || { echo "t2i_hpc: $(hostname) does not see $path: put '
    'it on a file system that all nodes share (not /tmp or another local disk)" >&2; '
    f"exit {_NOT_SEEN}; }}; "
    "done"
)


def main(folder: Path, event: str) -> int:
    """Do one of the three; return the exit code."""
    if event == "begin":
        return prologue(folder)
    if event == "TERM":
        # The requeue makes Slurm send TERM again, to this process and to scontrol, which inherits.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        on_term(folder)
        return 0
    return epilogue(folder, int(event))


def prologue(folder: Path) -> int:
    """Decide whether a job's task is to start; return 0, or the code that the script exits with.

    With ``on_stop=chain`` the job's successor is submitted now.

    Args:
        folder: where the job is recorded, or the run directory.
    """
    current = read_current_job(folder, _RECORD_SECONDS)
    if not _sees_all(current):
        return _USER_ERROR
    before, reason = _predecessor(current)
    if reason:
        say_in_log(f"job {current.job} has nothing to do: {reason}")
        return NOTHING_LEFT
    reached = current.progress()
    if gives_up(current, reached):
        return GAVE_UP
    try:
        if again := wait_for_successors(current):
            say_in_log(
                f"what job {current.job} waits for is being resumed: job {again.job} replaces it"
            )
            return NOTHING_LEFT
    except ClusterError as error:
        say_in_log(f"job {current.job} may begin too early: {error}")
    note_begin(current.work, current.job, current.restart, reached, before)
    if current.chains and not current.was_cancelled():
        _submit_successor(current)
    return 0


def _predecessor(current: CurrentJob) -> tuple[str, str]:
    """Return Slurm's state of a predecessor that left no end, and a reason not to start."""
    if len(current.chain) < 2 or current.restart:
        return "", ""
    job = current.chain[1]
    last = next(iter(read_starts(current.work, [job])), None)
    if last is not None and last.code is not None:
        return "", "" if resumes(last.code) else f"job {job} ended with code {last.code}"
    state = states_of([job]).get(job)
    name = state.name if state else ""
    return name, f"job {job} was cancelled" if name == "CANCELLED" else ""


def _submit_successor(current: CurrentJob) -> None:
    try:
        successor = ensure_successor(current)
        say_in_log(f"job {successor.job} resumes job {current.job} if it stops before its end")
    except ClusterError as error:  # it is tried again at the end
        say_in_log(f"no job resumes job {current.job} yet: {error}")


def _sees_all(current: CurrentJob) -> bool:
    """Whether all nodes of a job see the folders it works in; say which does not."""
    directory = show_job(current.job).directory
    if directory is not None and not directory.is_dir():
        say_in_log(
            f"{os.uname().nodename} does not see {directory}, where job {current.job} was "
            "submitted: submit it from a folder that all nodes share (not /tmp or another local "
            "disk)"
        )
        return False
    nodes = int(os.environ.get("SLURM_JOB_NUM_NODES") or 1)
    return nodes < 2 or _all_nodes_see(current.work, nodes)


def _all_nodes_see(work: Path, nodes: int) -> bool:
    """Let every node of the job look for a file that this one makes beside the work."""
    folder = next(path for path in (work, *work.parents) if path.is_dir())
    probe = folder / f".seen-by-all-nodes-{uuid.uuid4().hex[:8]}"
    try:
        probe.touch()
    except OSError:
        return True  # the task says it
    try:
        return _run_everywhere(nodes, _LOOK, [str(probe.absolute()), str(Path.cwd())])
    finally:
        probe.unlink(missing_ok=True)


def _run_everywhere(nodes: int, script: str, arguments: Sequence[str]) -> bool:
    step = ["srun", "--quiet", f"--nodes={nodes}", f"--ntasks={nodes}", "--ntasks-per-node=1"]
    step += ["--cpus-per-task=1", "--overlap", "--mpi=none"]
    try:
        done = subprocess.run(
            [*step, "bash", "-c", script, "look", *arguments],
            timeout=_NODES_SECONDS,
            stdin=subprocess.DEVNULL,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return True  # whatever is wrong with srun, the task's own says it better
    return done.returncode != _NOT_SEEN


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2]))
