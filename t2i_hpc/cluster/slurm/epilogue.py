"""Which task of a job failed by itself, when all the others only say that they lost it.

srun leaves with the highest exit code of its tasks, and that of a lost rank is higher than that of
a defect or a wrong setting. It also says in the log how each task ended.

The last step of a job's script: what the end of its task means for the job.

Done and user errors stay what they are. A task that stopped and saved, lost a rank or was killed
resumes: the job is requeued, or the one that was submitted at its beginning (chain) follows. A job
that makes no progress gives up after some starts, one that a person cancelled is left alone, and a
node that was lost twice is not used again. What is known is read from files and from Slurm.

At a time limit or after a preemption Slurm sends TERM to the script as well. Then the job is
requeued at once: a save may take all of ``KillWait``, and behind it nothing runs any more.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path

from t2i_hpc.cluster.slurm import requeue as fate
from t2i_hpc.cluster.slurm import requeue as going_on
from t2i_hpc.cluster.slurm.job_record import KnownJob, know
from t2i_hpc.cluster.slurm.prologue import gives_up
from t2i_hpc.cluster.slurm.requeue import Fate, OwnJob
from t2i_hpc.cluster.slurm.starts import count_idle, find_bad_nodes, note_end, spare_nodes
from t2i_hpc.common.errors import GAVE_UP, LOST_RANK, NOTHING_LEFT, STOPPED, ClusterError, resumes
from t2i_hpc.common.terminal import say_in_log
from t2i_hpc.runs.sessions import LOST as SESSION_LOST
from t2i_hpc.runs.sessions import STOPPED as SESSION_STOPPED
from t2i_hpc.runs.sessions import read_sessions

_START = "Starting with JobEnvironment"
_ENDED = re.compile(r"^srun: error: .*: tasks? [\d,-]+: Exited with exit code (\d+)$", re.MULTILINE)
_LAST_BYTES = 1 << 20


def cause_of(log: Path, code: int) -> int:
    """Return the exit code of a task that did not merely lose another, else `code` itself.

    Args:
        log: of the job, over all its starts; the last one counts.
        code: srun's.
    """
    if code != LOST_RANK or not log.is_file():
        return code
    with log.open("rb") as stream:
        stream.seek(max(0, log.stat().st_size - _LAST_BYTES))
        text = stream.read().decode(errors="replace")
    codes = [int(found) for found in _ENDED.findall(text.rpartition(_START)[2])]
    return next((each for each in codes if each not in (LOST_RANK, STOPPED)), code)


_TERMINATED = 143
_ANY_FAILURE = 1


def afterwards(folder: Path, code: int) -> int:
    """Decide and act; return the exit code that the job is to have."""
    if code == NOTHING_LEFT:
        return 0
    known = know(folder)
    if code == _ANY_FAILURE:
        code = _told(known, code)
    elif known.record is not None and resumes(code):
        code = cause_of(Path(known.record.log), code)
    if not resumes(code):
        return _is_over(known, code)
    own = fate.ask(known.job)
    if known.was_cancelled() or own.fate is Fate.CANCELLED:
        say_in_log(f"job {known.job} was cancelled: it is not requeued")
        _withdraw(known)
        return code
    if known.cluster.on_stop == "end" or not own.fate.can_be_requeued:
        return code  # Slurm has it, or requeues it by itself
    if own.fate is not Fate.PREEMPTED:
        note_end(known.work, known.job, known.restart, code)
    starts = known.starts()
    if (idle := count_idle(starts, known.progress())) > known.cluster.max_restarts:
        say_in_log(gives_up(known, idle))
        _withdraw(known)
        return GAVE_UP
    bad = find_bad_nodes(read_sessions(known.work), starts)
    return _resume(known, own, code, spare_nodes(bad))


def on_term(folder: Path) -> None:
    """Requeue a job that Slurm is ending, if nobody wants its end; its task may still run."""
    known = know(folder)
    own = fate.ask(known.job)
    if known.was_cancelled() or own.fate is Fate.CANCELLED:
        _withdraw(known)
        return
    if not own.fate.ends_work or known.chains or known.cluster.on_stop == "end":
        return
    if (idle := count_idle(known.starts(), known.progress())) > known.cluster.max_restarts:
        say_in_log(gives_up(known, idle))
        return
    # What this start saves from now on, the next one sees: so it is not counted yet.
    preempted = own.fate is Fate.PREEMPTED
    note_end(known.work, known.job, known.restart, None if preempted else _TERMINATED)
    try:
        going_on.put_back(known.job)
        say_in_log(f"{own.fate.value}: job {known.job} is requeued")
    except ClusterError as error:
        say_in_log(_cannot(known, error))


def _told(known: KnownJob, code: int) -> int:
    """Return what really ended a task whose launcher ends with 1 whatever it is.

    torchrun does, and srun where Slurm ends the job before its step begins ("already completing").
    """
    last = next(iter(reversed(read_sessions(known.work))), None)
    if last is not None and (last.job, last.restart) == (known.job, known.restart) and last.outcome:
        return {SESSION_STOPPED: STOPPED, SESSION_LOST: LOST_RANK}.get(last.outcome, code)
    what = fate.ask(known.job).fate
    return _TERMINATED if what.ends_work or what is Fate.REQUEUED else code


def _is_over(known: KnownJob, code: int) -> int:
    """Note the end of a job whose work is done or cannot be done."""
    note_end(known.work, known.job, known.restart, code)
    _withdraw(known)
    return code


def _withdraw(known: KnownJob) -> None:
    if known.chains:
        going_on.withdraw_successor(known)


def _resume(known: KnownJob, own: OwnJob, code: int, bad: Sequence[str]) -> int:
    exclude = ",".join([*filter(None, [own.exclude]), *bad]) if bad else ""
    try:
        if known.chains:
            successor = going_on.ensure_successor(known)
            if exclude:
                going_on.exclude_nodes(successor.job, exclude)
            say_in_log(f"job {known.job} ended with code {code}: job {successor.job} resumes it")
            return 0
        going_on.put_back(known.job, exclude)
        say_in_log(f"job {known.job} ended with code {code}: it is requeued")
    except ClusterError as error:
        say_in_log(_cannot(known, error))
    return code


def _cannot(known: KnownJob, error: ClusterError) -> str:
    return f"job {known.job} could not be resumed ({error}): run the same command again"


if __name__ == "__main__":
    sys.exit(afterwards(Path(sys.argv[1]), int(sys.argv[2])))
