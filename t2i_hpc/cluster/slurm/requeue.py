"""When and how a job is requeued: decided when Slurm ends it, and when its task has ended.

A task that stopped and saved, lost a rank or was killed is resumed: its job is requeued, or its
successor (``on_stop=chain``) starts. Done and user errors stay what they are. A job that makes no
progress gives up after some starts, one that a person cancelled is left alone, and a node that
lost ranks twice is excluded. All of that is decided from files and from what Slurm answers.
"""

from __future__ import annotations

import re
import time
from pathlib import Path

from t2i_hpc.cluster.slurm.bad_nodes import excludable, find_bad_nodes
from t2i_hpc.cluster.slurm.client import run_client
from t2i_hpc.cluster.slurm.current_job import (
    CurrentJob,
    SlurmJob,
    State,
    read_current_job,
    show_job,
)
from t2i_hpc.cluster.slurm.starts import (
    count_without_progress,
    note_end,
)
from t2i_hpc.cluster.slurm.successors import ensure_successor, withdraw_successor
from t2i_hpc.common.errors import GAVE_UP, LOST_RANK, NOTHING_LEFT, STOPPED, ClusterError, resumes
from t2i_hpc.common.terminal import say_in_log
from t2i_hpc.runs import sessions

_UPDATE_SECONDS = 5.0
_REQUEUED_ALREADY = "pending execution"
_ANY_FAILURE = 1
_TERMINATED = 143
_LOG_BYTES = 1 << 20
_LOG_START = "Starting with JobEnvironment"
_TASK_ENDED = re.compile(
    r"^srun: error: .*: tasks? [\d,-]+: Exited with exit code (\d+)$", re.MULTILINE
)


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
    if gives_up(current, current.progress()):
        return
    # What this start saves from now on, the next one sees: so it is not counted yet.
    preempted = slurm.state is State.PREEMPTED
    note_end(current.work, current.job, current.restart, None if preempted else _TERMINATED)
    try:
        requeue(current.job)
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
    if gives_up(current, current.progress()):
        _withdraw(current)
        return GAVE_UP
    return _resume(current, slurm, code)


def _resume(current: CurrentJob, slurm: SlurmJob, code: int) -> int:
    """Requeue a job or leave its work to its successor; return the job's exit code."""
    bad = find_bad_nodes(sessions.read_sessions(current.work), current.starts())
    bad = excludable(bad)
    exclude = ",".join([*filter(None, [slurm.excluded]), *bad]) if bad else ""
    try:
        if current.chains:
            successor = ensure_successor(current)
            if exclude:
                exclude_nodes(successor.job, exclude)
            say_in_log(f"job {current.job} ended with code {code}: job {successor.job} resumes it")
            return 0
        requeue(current.job, exclude)
        say_in_log(f"job {current.job} ended with code {code}: it is requeued")
    except ClusterError as error:
        say_in_log(_not_resumed(current, error))
    return code


def requeue(job: str, exclude: str = "") -> None:
    """Requeue this process's job under its number; return when Slurm ends it.

    Args:
        job: its number, ``123_4`` for an element of an array. Never SLURM_JOB_ID: one element has
            the number of the whole array there, and Slurm would requeue all of them.
        exclude: nodes it shall not get any more. Slurm accepts this of waiting jobs only, so it
            is said after the requeue, while the job's script still lives.

    Raises:
        ClusterError: Slurm refuses.
    """
    try:
        run_client("scontrol", "requeue", job)
    except ClusterError as error:
        if _REQUEUED_ALREADY not in str(error):
            raise
    if exclude:
        exclude_nodes(job, exclude)


def exclude_nodes(job: str, nodes: str) -> None:
    """Keep a job that waits, or is about to, from some nodes.

    Raises:
        ClusterError: Slurm refuses.
    """
    end = time.monotonic() + _UPDATE_SECONDS
    while True:
        try:
            run_client("scontrol", "update", f"JobId={job}", f"ExcNodeList={nodes}")
            return
        except ClusterError:
            if time.monotonic() > end:
                raise
            time.sleep(0.2)


def gives_up(current: CurrentJob, reached: int) -> bool:
    """Whether a job has started too often without progress; say it."""
    count = count_without_progress(current.starts(), reached)
    if count <= current.cluster.max_restarts:
        return False
    made = {"evaluate": "partial statistics", "shards": "shard", "generate": "image"}
    what = made.get(current.record.task if current.record else "", "checkpoint")
    say_in_log(
        f"job {current.job} gives up: {count} starts in a row made no new {what} "
        f"(cluster.max_restarts={current.cluster.max_restarts}); the log above says why"
    )
    return True


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


def _not_resumed(current: CurrentJob, error: ClusterError) -> str:
    return f"job {current.job} could not be resumed ({error}): run the same command again"


def _withdraw(current: CurrentJob) -> None:
    if current.chains:
        withdraw_successor(current)
