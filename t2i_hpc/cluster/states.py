"""The states of jobs: what Slurm's queue knows of them, else its accounting.

The queue forgets a job some minutes after its end; accounting may be absent or lag behind. One
call of each client asks for any number of jobs. That nobody answers is not that a job is over:
jobs without an answer are named as such. Which jobs a person cancelled is in
``FOLDER/jobs/cancels`` before Slurm is told, so that none of them is requeued.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from t2i_hpc.cluster.jobs import JOBS_FOLDER
from t2i_hpc.cluster.slurm.client import has_client, run_client, split_rows, warn_of
from t2i_hpc.common.errors import ClusterError

_LOG = logging.getLogger("t2i_hpc")
_WAITING = {"PENDING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "RESV_DEL_HOLD", "SPECIAL_EXIT"}
# All states in which a job is over. Any other word, one of a newer Slurm too, is a living job's.
_TERMINAL = {"BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "LAUNCH_FAILED"}
_TERMINAL |= {"NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "REVOKED", "TIMEOUT"}
_NOTHING = {"", "None", "None assigned", "(null)"}
_CANCELLED = "cancels"


@dataclass(frozen=True)
class JobState:
    """One job, or one element of a job array.

    Attributes:
        job: Slurm's number, ``123`` or ``123_4``.
        word: Slurm's word, e.g. ``PENDING``, ``RUNNING``, ``COMPLETED``.
        reason: why it waits, e.g. ``Resources``; "" for none.
        nodes: where it runs or ran, e.g. ``gpu[03-04]``.
    """

    job: str
    word: str
    reason: str = ""
    nodes: str = ""

    @property
    def waits(self) -> bool:
        """Whether it is in the queue."""
        return self.word in _WAITING

    @property
    def runs(self) -> bool:
        """Whether it holds nodes, or is between waiting and its end in any other way."""
        return self.lives and not self.waits

    @property
    def lives(self) -> bool:
        """Whether it is not over yet."""
        return self.word not in _TERMINAL


@dataclass(frozen=True)
class Answer:
    """What is known of some jobs.

    Attributes:
        states: by number, of the jobs that Slurm knows.
        unanswered: jobs of which nobody said anything, so that they may live or not.
        reason: why there was no answer, "" if there was one.
    """

    states: dict[str, JobState]
    unanswered: frozenset[str] = frozenset()
    reason: str = ""

    def living(self) -> dict[str, JobState]:
        """Return the jobs that are not over.

        Raises:
            ClusterError: of some nobody knows whether they are.
        """
        if self.unanswered:
            raise ClusterError(
                f"nobody knows whether {name_jobs(self.unanswered)} still waits or runs, so "
                f"nothing was changed: {self.reason}"
            )
        return {job: state for job, state in self.states.items() if state.lives}


def ask_states(jobs: Iterable[str]) -> Answer:
    """Ask Slurm for the states of jobs.

    A job that the queue answers not to know is over: it is among the states if accounting knows
    how it ended, else it is left out. Without an answer of the queue, accounting is believed of
    jobs that have ended; all others are unanswered.
    """
    wanted = set(jobs)
    if not wanted:
        return Answer({})
    if not has_client("squeue"):
        return Answer({}, frozenset(wanted), "squeue is not installed here")
    queue, reason = _from_queue(wanted)
    found = dict(queue)
    if not wanted <= found.keys():
        # Accounting lags behind: a job that the queue does not know does not live.
        ended = {job: each for job, each in _from_accounting(wanted).items() if not each.lives}
        found = {**ended, **found}
    silent = frozenset(wanted - found.keys()) if reason else frozenset()
    return Answer({job: each for job, each in found.items() if job in wanted}, silent, reason)


def states_of(jobs: Iterable[str]) -> dict[str, JobState]:
    """Return the states of jobs, of those that Slurm knows, for whom silence changes nothing.

    That the queue gives no answer is a warning; a machine without Slurm answers with nothing.
    """
    answer = ask_states(jobs)
    if answer.reason and has_client("squeue"):
        _LOG.warning("%s", answer.reason)
    return answer.states


def name_jobs(jobs: Iterable[str], most: int = 4) -> str:
    """Name jobs in a sentence, e.g. ``job 7`` or ``jobs 7, 8_0, 8_1, 8_2 and 3 more``."""
    listed = sorted(jobs)
    more = f" and {len(listed) - most} more" if len(listed) > most else ""
    return f"job{'s' if len(listed) > 1 else ''} {', '.join(listed[:most])}{more}"


def mark_cancelled(folder: Path, jobs: Sequence[str]) -> None:
    """Say that these jobs of a folder shall not be requeued; one file a job, see `jobs`."""
    marks = folder / JOBS_FOLDER / _CANCELLED
    marks.mkdir(parents=True, exist_ok=True)
    for job in jobs:
        (marks / job).touch()


def cancelled_jobs(folder: Path) -> set[str]:
    """Return the jobs of a folder that a person cancelled."""
    return {path.name for path in (folder / JOBS_FOLDER / _CANCELLED).glob("[0-9]*")}


def _from_queue(wanted: set[str]) -> tuple[dict[str, JobState], str]:
    """Return what the queue knows, and why that may not be all ("": it is all)."""
    # --array: one line an element, also of those that wait. A list that holds a number which
    # the queue forgot is answered without it, but a single such number is refused.
    words = ["--noheader", "--array", "--states=all", f"--jobs={_numbers(wanted)}"]
    try:
        text = run_client("squeue", *words, "--format=%i|%T|%r|%N")
    except ClusterError as error:
        return {}, "" if "Invalid job id" in str(error) else str(error)
    states, strange = _read(text, wanted)
    return states, f"squeue printed what cannot be read: {strange[0]:.200}" if strange else ""


def _from_accounting(wanted: set[str]) -> dict[str, JobState]:
    if not has_client("sacct"):
        return {}
    words = ["--noheader", "--parsable2", "--allocations", "--allusers"]
    words += [f"--jobs={_numbers(wanted)}", "--format=JobID,State,Reason,NodeList"]
    try:
        text = run_client("sacct", *words)
    except ClusterError as error:
        _LOG.warning("%s", error)
        return {}
    states, strange = _read(text, wanted)
    warn_of("sacct", strange)
    return states


def _numbers(jobs: Iterable[str]) -> str:
    """Return the numbers of jobs without those of elements, as the clients take them."""
    return ",".join(sorted({job.partition("_")[0] for job in jobs}))


def _read(text: str, wanted: Iterable[str]) -> tuple[dict[str, JobState], list[str]]:
    """Read lines of ``job|state|reason|nodes``; return the states, and the lines not understood.

    Of one job the last line counts. A list of elements that was cut short stands for all wanted
    elements of its array that no other line names.
    """
    states, rest = dict[str, JobState](), dict[str, JobState]()
    rows, strange = split_rows(text, 4)
    for name, words, reason, nodes in rows:
        word = words.partition(" ")[0]  # CANCELLED by 0
        said = [word, *("" if field in _NOTHING else field for field in (reason, nodes))]
        elements, whole = expand(name)
        states |= {job: JobState(job, *said) for job in elements}
        if not whole:
            array = name.partition("_")[0]
            rest |= {job: JobState(job, *said) for job in wanted if job.startswith(f"{array}_")}
    return {**rest, **states}, strange


def expand(name: str) -> tuple[list[str], bool]:
    """Return the elements of a job array, and whether these are all.

    ``7_[0-2,5%2]`` is 7_0, 7_1, 7_2 and 7_5; ``7_[0,2,...]`` is 7_0, 7_2 and others.
    """
    job, bracket, inside = name.partition("_[")
    if not bracket:
        return [name], True
    elements, whole = list[str](), True
    for part in inside.rstrip("]").partition("%")[0].split(","):
        bounds, _, step = part.partition(":")
        first, _, last = bounds.partition("-")
        try:
            numbers = range(int(first), int(last or first) + 1, int(step or 1))
        except ValueError:
            whole = False
            continue
        elements += [f"{job}_{number}" for number in numbers]
    return elements, whole
