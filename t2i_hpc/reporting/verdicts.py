"""Whether a run waits, runs, or how it ended: Slurm's word and the run's own files, weighed.

Slurm is believed about jobs that are not over; a session's own end about all others. Slurm's
word about an ended job counts where no session of it left one.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from t2i_hpc.cluster.jobs import JobRecord
from t2i_hpc.cluster.slurm.client import has_client
from t2i_hpc.cluster.states import JobState
from t2i_hpc.common.run_layout import newest_images
from t2i_hpc.common.sessions import DONE, FAILED, LOST, STOPPED, Session, is_held
from t2i_hpc.reporting.tails import last_error

NEW, WAITING, RUNNING, UNKNOWN = "new", "waiting", "running", "unknown"
_TRAINING = ("train", "pretrain")


@dataclass(frozen=True)
class Evidence:
    """What there is to judge a run by.

    Attributes:
        run: the run directory.
        jobs: all that were submitted for it, oldest first.
        states: by the number of a job, of the jobs that Slurm knows.
        sessions: all starts of the run, oldest first.
        unanswered: jobs of which nobody knows whether they live.
        silence: why nobody knows.
    """

    run: Path
    jobs: Sequence[JobRecord]
    states: Mapping[str, JobState]
    sessions: Sequence[Session]
    unanswered: Collection[str] = ()
    silence: str = ""

    @property
    def training(self) -> list[JobRecord]:
        """The jobs that the run itself is; of a folder that is no run, all."""
        own = [record for record in self.jobs if record.task in _TRAINING]
        return own if own or self.sessions else list(self.jobs)

    @property
    def living(self) -> list[JobState]:
        """The run's own jobs that are not over; one submitted by hand is in its sessions alone."""
        numbers = [record.job for record in self.training]
        numbers += [session.job for session in self.sessions[-1:]]
        return self.living_of(dict.fromkeys(numbers))

    def living_of(self, jobs: Iterable[str]) -> list[JobState]:
        """Return the states of some jobs, of those that are not over."""
        found = [self.states[job] for job in jobs if job in self.states]
        return [state for state in found if state.lives]

    @property
    def saved(self) -> int | None:
        """Images seen at the newest checkpoint; None without one."""
        return newest_images(self.run)


def judge(known: Evidence) -> tuple[str, str]:
    """Return the state of a run, one of :class:`RunState`'s words, and what is said of it."""
    last = known.sessions[-1] if known.sessions else None
    unfinished = last is None or last.outcome is None
    if any(state.runs for state in known.living) or (unfinished and is_held(known.run)):
        return RUNNING, ""
    if known.living:
        return WAITING, known.living[-1].reason
    if job := _unanswered_job(known, last):
        return UNKNOWN, f"nobody knows whether job {job} still waits or runs: {known.silence}"
    return _over(known, last)


def _unanswered_job(known: Evidence, last: Session | None) -> str:
    """Return the job that a run may still be waiting or running as; "" where files tell enough."""
    newest = known.training[-1] if known.training else None
    if newest and (last is None or _came_after(newest, last)):
        job = newest.job
    elif last is None or last.outcome in (DONE, FAILED):
        return ""
    elif last.outcome is not None and not has_client("squeue"):
        return ""  # a run that was copied here: what it said at its end is all there is
    else:
        job = last.job
    return job if job in known.unanswered else ""


def _over(known: Evidence, last: Session | None) -> tuple[str, str]:
    """Judge a run that neither waits nor runs."""
    newest = known.training[-1] if known.training else None
    if newest and (last is None or _came_after(newest, last)):
        return _of_job(newest, known.states.get(newest.job))
    if last is None:
        return (NEW, "") if known.saved is None else (STOPPED, "")
    if last.outcome is None:
        return _cut_off(last, known.states.get(last.job))
    return last.outcome, last.message


def _came_after(record: JobRecord, last: Session) -> bool:
    """Whether a job is another one than the last session's, and a later one."""
    return record.job != last.job and record.submitted >= last.began


def _of_job(record: JobRecord, state: JobState | None) -> tuple[str, str]:
    """Judge by a job that left no session."""
    if state is None:
        return LOST, f"job {record.job} is gone, and nobody knows how it ended"
    if state.word == "COMPLETED":
        return DONE, ""
    if state.word == "CANCELLED":
        return STOPPED, f"job {state.job} was cancelled"
    if not Path(record.log).exists():
        return FAILED, (
            f"job {state.job} ended as {state.word} without a line in {record.log}: probably its "
            "node does not see that folder (/tmp and other local disks are not shared)"
        )
    return FAILED, last_error(Path(record.log)) or f"job {state.job} ended as {state.word}"


def _cut_off(session: Session, state: JobState | None) -> tuple[str, str]:
    if state is not None and state.word == "CANCELLED":
        return STOPPED, f"job {state.job} was cancelled before it had saved"
    word = f" (job {state.job}: {state.word})" if state is not None else ""
    hosts = ", ".join(session.hosts)
    return LOST, f"cut off on {hosts} without a word{word}: killed, or a node went down"
