"""What a batch script calls before, during and after its task.

python -m t2i_hpc.cluster.slurm.job FOLDER begin   # before srun; other codes than 0: do not start
python -m t2i_hpc.cluster.slurm.job FOLDER TERM    # Slurm ends the job while its task runs
python -m t2i_hpc.cluster.slurm.job FOLDER CODE    # the task ended with this exit code

FOLDER is where the job was recorded by `t2i_hpc.launch`; for a script submitted by hand it is
the run directory, and the defaults of ``cluster`` hold. No torch is imported: each takes a tenth
of a second.

A task that stopped and saved, lost a rank or was killed is resumed: its job is requeued, or its
successor (``on_stop=chain``) starts. Done and user errors stay what they are. A job that makes no
progress gives up after some starts, one that a person cancelled is left alone, and a node that
lost ranks twice is excluded. All of that is decided from files and from what Slurm answers.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import uuid
from collections.abc import Sequence
from pathlib import Path

from t2i_hpc.cluster.slurm import requeue
from t2i_hpc.cluster.slurm.client import states_of
from t2i_hpc.cluster.slurm.current_job import (
    CurrentJob,
    SlurmJob,
    State,
    read_current_job,
    show_job,
)
from t2i_hpc.cluster.slurm.starts import count_without_progress, note_begin, note_end, read_starts
from t2i_hpc.common.errors import GAVE_UP, LOST_RANK, NOTHING_LEFT, STOPPED, ClusterError, resumes
from t2i_hpc.common.terminal import say_in_log
from t2i_hpc.runs import sessions

_ANY_FAILURE, _USER_ERROR, _TERMINATED = 1, 2, 143
_RECORD_SECONDS = 5.0
_LOG_BYTES = 1 << 20
_LOG_START = "Starting with JobEnvironment"
_TASK_ENDED = re.compile(
    r"^srun: error: .*: tasks? [\d,-]+: Exited with exit code (\d+)$", re.MULTILINE
)
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
    if _gives_up(current, reached):
        return GAVE_UP
    try:
        if again := requeue.wait_for_successors(current):
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


def on_term(folder: Path) -> None:
    """Requeue a job that Slurm is ending, if nobody wants its end; its task may still run.

    At a time limit or after a preemption Slurm sends TERM to the script as well. The job is
    requeued at once: a save may take all of ``KillWait``, and behind it nothing runs any more.
    """
    current = read_current_job(folder)
    slurm = show_job(current.job)
    if current.was_cancelled() or slurm.state is State.CANCELLED:
        _withdraw(current)
        return
    if not slurm.state.interrupted or current.chains or current.cluster.on_stop == "end":
        return
    if _gives_up(current, current.progress()):
        return
    # What this start saves from now on, the next one sees: so it is not counted yet.
    preempted = slurm.state is State.PREEMPTED
    note_end(current.work, current.job, current.restart, None if preempted else _TERMINATED)
    try:
        requeue.requeue(current.job)
        say_in_log(f"{slurm.state.value}: job {current.job} is requeued")
    except ClusterError as error:
        say_in_log(_not_resumed(current, error))


def epilogue(folder: Path, code: int) -> int:
    """Decide what the end of a task means for its job; return the job's exit code.

    Args:
        folder: where the job is recorded, or the run directory.
        code: the task's exit code.
    """
    if code == NOTHING_LEFT:
        return 0
    current = read_current_job(folder)
    if code == _ANY_FAILURE:
        code = _real_code(current)
    elif current.record is not None and resumes(code):
        code = cause_of(Path(current.record.log), code)
    if not resumes(code):  # the work is done, or cannot be done
        note_end(current.work, current.job, current.restart, code)
        _withdraw(current)
        return code
    slurm = show_job(current.job)
    if current.was_cancelled() or slurm.state is State.CANCELLED:
        say_in_log(f"job {current.job} was cancelled: it is not requeued")
        _withdraw(current)
        return code
    if current.cluster.on_stop == "end" or not slurm.state.can_be_requeued:
        return code  # Slurm has requeued it, or does
    if slurm.state is not State.PREEMPTED:
        note_end(current.work, current.job, current.restart, code)
    if _gives_up(current, current.progress()):
        _withdraw(current)
        return GAVE_UP
    return _resume(current, slurm, code)


def cause_of(log: Path, code: int) -> int:
    """Return the exit code of a task that did not merely lose another, else `code` itself.

    srun exits with the highest exit code of its tasks, and that of a lost rank is higher than that
    of a defect or a wrong setting. It also says in the log how each task ended.

    Args:
        log: of the job, over all its starts; the last one counts.
        code: srun's.
    """
    if code != LOST_RANK or not log.is_file():
        return code
    with log.open("rb") as stream:
        stream.seek(max(0, log.stat().st_size - _LOG_BYTES))
        text = stream.read().decode(errors="replace")
    codes = [int(found) for found in _TASK_ENDED.findall(text.rpartition(_LOG_START)[2])]
    return next((each for each in codes if each not in (LOST_RANK, STOPPED)), code)


def _real_code(current: CurrentJob) -> int:
    """Return what really ended a task whose launcher exits with 1 whatever it is.

    torchrun does, and srun where Slurm ends the job before its step begins ("already completing").
    """
    last = next(iter(reversed(sessions.read_sessions(current.work))), None)
    if last and (last.job, last.restart) == (current.job, current.restart) and last.outcome:
        codes = {sessions.STOPPED: STOPPED, sessions.LOST: LOST_RANK}
        return codes.get(last.outcome, _ANY_FAILURE)
    state = show_job(current.job).state
    ended_by_slurm = state.interrupted or state is State.REQUEUED
    return _TERMINATED if ended_by_slurm else _ANY_FAILURE


def _resume(current: CurrentJob, slurm: SlurmJob, code: int) -> int:
    """Requeue a job or leave its work to its successor; return the job's exit code."""
    bad = requeue.find_bad_nodes(sessions.read_sessions(current.work), current.starts())
    bad = requeue.excludable(bad)
    exclude = ",".join([*filter(None, [slurm.excluded]), *bad]) if bad else ""
    try:
        if current.chains:
            successor = requeue.ensure_successor(current)
            if exclude:
                requeue.exclude_nodes(successor.job, exclude)
            say_in_log(f"job {current.job} ended with code {code}: job {successor.job} resumes it")
            return 0
        requeue.requeue(current.job, exclude)
        say_in_log(f"job {current.job} ended with code {code}: it is requeued")
    except ClusterError as error:
        say_in_log(_not_resumed(current, error))
    return code


def _not_resumed(current: CurrentJob, error: ClusterError) -> str:
    return f"job {current.job} could not be resumed ({error}): run the same command again"


def _withdraw(current: CurrentJob) -> None:
    if current.chains:
        requeue.withdraw_successor(current)


def _gives_up(current: CurrentJob, reached: int) -> bool:
    """Whether a job has started too often without progress; say it."""
    count = count_without_progress(current.starts(), reached)
    if count <= current.cluster.max_restarts:
        return False
    made = {"evaluate": "partial statistics", "shards": "shard"}
    what = made.get(current.record.task if current.record else "", "checkpoint")
    say_in_log(
        f"job {current.job} gives up: {count} starts in a row made no new {what} "
        f"(cluster.max_restarts={current.cluster.max_restarts}); the log above says why"
    )
    return True


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
        successor = requeue.ensure_successor(current)
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
