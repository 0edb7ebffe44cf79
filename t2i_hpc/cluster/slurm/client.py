"""Asks Slurm: its command-line clients, and the states of jobs.

A client runs with a time limit, and its output is read with distrust. No answer is never taken
for an answer: a job of which nobody knows is named as such. The queue forgets a job some minutes
after its end; accounting may be absent or lag behind. One call of each asks for any number of jobs.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from t2i_hpc.common.errors import ClusterError
from t2i_hpc.runs.sessions import job_of

# What a person sets for all of Slurm's clients. Every other SLURM_ variable tells of the job that
# this process may be in.
CLIENT_SETTINGS = frozenset({"SLURM_CONF", "SLURM_JWT", "SLURM_CLUSTERS"})

_LOG = logging.getLogger("t2i_hpc")
_TIMEOUT_SECONDS = 60.0
_TIME_LEFT_TIMEOUT_SECONDS = 10.0
_TIME_LEFT = re.compile(r"(?:(\d+)-)?(?:(\d+):)?(\d+):(\d+)")  # days-hours:minutes:seconds
_SILENT = ("Unable to contact slurm controller", "timed out on send/recv", "Zero Bytes were")
_WHOLE_LISTS = {"SLURM_BITSTR_LEN": "0"}  # else a long list of array elements ends in "..."
_CLUSTER_LINE = "CLUSTER:"  # one cluster's heading, with SLURM_CLUSTERS also under --noheader
_WAITING = {"PENDING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "RESV_DEL_HOLD", "SPECIAL_EXIT"}
# All states in which a job is over. Any other one, of a newer Slurm too, is a living job's.
_TERMINAL = {"BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "LAUNCH_FAILED"}
_TERMINAL |= {"NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "REVOKED", "TIMEOUT"}
_NOTHING = {"", "None", "None assigned", "(null)"}


class NoAnswerError(ClusterError):
    """Slurm's controller does not answer, so nothing is known."""


@dataclass(frozen=True)
class JobState:
    """One job, or one element of a job array.

    Attributes:
        job: Slurm's number, ``123`` or ``123_4``.
        name: of the state, e.g. ``PENDING``, ``RUNNING``, ``COMPLETED``.
        reason: why it waits, e.g. ``Resources``; "" for none.
        nodes: where it runs or ran, e.g. ``gpu[03-04]``.
    """

    job: str
    name: str
    reason: str = ""
    nodes: str = ""

    @property
    def waits(self) -> bool:
        """Whether it is in the queue."""
        return self.name in _WAITING

    @property
    def runs(self) -> bool:
        """Whether it holds nodes, or is between waiting and its end in any other way."""
        return self.lives and not self.waits

    @property
    def lives(self) -> bool:
        """Whether it is not over yet."""
        return self.name not in _TERMINAL


@dataclass(frozen=True)
class Answer:
    """What is known of some jobs.

    Attributes:
        states: by number, of the jobs that Slurm knows.
        unanswered: jobs of unknown state, which may live or not.
        reason: why there was no answer, "" if there was one.
    """

    states: dict[str, JobState]
    unanswered: frozenset[str] = frozenset()
    reason: str = ""

    def living(self) -> dict[str, JobState]:
        """Return the jobs that are not over.

        Raises:
            ClusterError: the state of some is unknown.
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
    """Return the states of the jobs that Slurm knows, for callers to whom silence changes nothing.

    A queue that gives no answer is a warning; a machine without Slurm answers with nothing.
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


def has_client(name: str) -> bool:
    """Return whether a client of Slurm, e.g. ``sacct``, is installed here."""
    return shutil.which(name) is not None


def run_client(
    name: str, *arguments: str, script: str = "", timeout: float = _TIMEOUT_SECONDS
) -> str:
    """Run a client of Slurm; return what it prints, without the last line's end.

    Args:
        name: of the client.
        arguments: its command line.
        script: what it reads from standard input.
        timeout: seconds to wait for an answer.

    Raises:
        ClusterError: it is not installed, refuses, or gives no answer.
    """
    if not has_client(name):
        raise ClusterError(
            f"{name} is not installed here: run this on a machine of the cluster that submits jobs "
            "(a login node), or take cluster=local"
        )
    try:
        done = subprocess.run(
            [name, *arguments],
            capture_output=True,
            text=True,
            errors="replace",
            input=script,
            timeout=timeout,
            check=False,
            env={**os.environ, **_WHOLE_LISTS},
        )
    except subprocess.TimeoutExpired as error:
        raise NoAnswerError(
            f"{name} gave no answer for {timeout:.0f} s: Slurm's controller is down or "
            "overloaded (see scontrol ping); try again later"
        ) from error
    if done.returncode and "configuration source" in done.stderr:
        raise ClusterError(
            f"{name} finds no configuration of Slurm here: set SLURM_CONF, run this on a login "
            "node, or take cluster=local"
        )
    if done.returncode and any(sign in done.stderr for sign in _SILENT):
        raise NoAnswerError(
            f"{name} got no answer ({_reason(done.stderr, name)}): Slurm's controller is down or "
            "overloaded (see scontrol ping); try again later"
        )
    if done.returncode:
        raise ClusterError(f"{name} refused: {_reason(done.stderr, name)}")
    return done.stdout.rstrip("\n")


def split_rows(text: str, fields: int) -> tuple[list[list[str]], list[str]]:
    """Read lines of ``a|b|c``: return the rows of that many fields, and the lines of other forms.

    Blank lines and the headings of clusters (``CLUSTER: name``) are passed over.
    """
    rows, strange = list[list[str]](), list[str]()
    for line in text.split("\n"):
        row = line.split("|", fields - 1)
        if len(row) == fields:
            rows.append(row)
        elif line.strip() and not line.startswith(_CLUSTER_LINE):
            strange.append(line)
    return rows, strange


def warn_of(name: str, strange: list[str]) -> None:
    """Warn of lines whose form is unknown, with the first of them."""
    if strange:
        _LOG.warning(
            "%s printed %d lines of an unknown form, the first is: %.200s",
            name,
            len(strange),
            strange[0],
        )


def expand(name: str) -> tuple[list[str], bool]:
    """Return the elements of a job array, and whether these are all.

    ``7_[0-2,5%2]`` is 7_0, 7_1, 7_2 and 7_5; ``7_[0,2,...]`` is 7_0, 7_2 and others.
    """
    job, bracket, inside = name.partition("_[")
    if not bracket:
        return [name], True
    elements, whole = list[str](), True
    for item in inside.rstrip("]").partition("%")[0].split(","):
        bounds, _, step = item.partition(":")
        first, _, last = bounds.partition("-")
        try:
            numbers = range(int(first), int(last or first) + 1, int(step or 1))
        except ValueError:
            whole = False
            continue
        elements += [f"{job}_{number}" for number in numbers]
    return elements, whole


def _from_queue(wanted: set[str]) -> tuple[dict[str, JobState], str]:
    """Return what the queue knows, and why that may not be all ("": it is all)."""
    # --array: one line an element, also of those that wait. A list that holds a number which
    # the queue forgot is answered without it, but a single such number is refused.
    arguments = ["--noheader", "--array", "--states=all", f"--jobs={_numbers(wanted)}"]
    try:
        text = run_client("squeue", *arguments, "--format=%i|%T|%r|%N")
    except ClusterError as error:
        return {}, "" if "Invalid job id" in str(error) else str(error)
    states, strange = _read_states(text, wanted)
    return states, f"squeue printed what cannot be read: {strange[0]:.200}" if strange else ""


def _from_accounting(wanted: set[str]) -> dict[str, JobState]:
    if not has_client("sacct"):
        return {}
    arguments = ["--noheader", "--parsable2", "--allocations", "--allusers"]
    arguments += [f"--jobs={_numbers(wanted)}", "--format=JobID,State,Reason,NodeList"]
    try:
        text = run_client("sacct", *arguments)
    except ClusterError as error:
        _LOG.warning("%s", error)
        return {}
    states, strange = _read_states(text, wanted)
    warn_of("sacct", strange)
    return states


def _numbers(jobs: Iterable[str]) -> str:
    """Return the numbers of jobs without those of elements, as the clients take them."""
    return ",".join(sorted({job.partition("_")[0] for job in jobs}))


def _read_states(text: str, wanted: Iterable[str]) -> tuple[dict[str, JobState], list[str]]:
    """Read lines of ``job|state|reason|nodes``; return the states, and the lines not understood.

    Of one job the last line counts. A list of elements that was cut short stands for all wanted
    elements of its array that no other line names.
    """
    states, rest = dict[str, JobState](), dict[str, JobState]()
    rows, strange = split_rows(text, 4)
    for job_name, state, reason, nodes in rows:
        name = state.partition(" ")[0]  # CANCELLED by 0
        known = [name, *("" if field in _NOTHING else field for field in (reason, nodes))]
        elements, whole = expand(job_name)
        states |= {job: JobState(job, *known) for job in elements}
        if not whole:
            array = job_name.partition("_")[0]
            rest |= {job: JobState(job, *known) for job in wanted if job.startswith(f"{array}_")}
    return {**rest, **states}, strange


def _reason(text: str, name: str) -> str:
    lines = [line.removeprefix(f"{name}: ").strip() for line in text.splitlines()]
    return "; ".join(line for line in lines if line) or "it gives no reason"


@dataclass(frozen=True)
class Pace:
    """Seconds between two questions: the first ones, the longest, and how they grow."""

    first: float = 10.0
    longest: float = 60.0
    growth: float = 1.5


PACE = Pace()
"""Sites lock accounts that ask more often."""


class Polling:
    """Says when to ask Slurm again: soon after news, then less and less often.

    Args:
        pace: the intervals; :data:`PACE` by default.
    """

    def __init__(self, pace: Pace | None = None) -> None:
        self._pace = pace or PACE
        self._interval, self._due = self._pace.first, 0.0

    def is_due(self) -> bool:
        """Whether it is time to ask."""
        return time.monotonic() >= self._due

    def asked(self, *, news: bool) -> None:
        """Note that Slurm was asked, and whether the answer has changed."""
        grown = min(self._interval * self._pace.growth, self._pace.longest)
        self._interval = self._pace.first if news else grown
        self._due = time.monotonic() + self._interval


def seconds_left(environment: Mapping[str, str]) -> float | None:
    """Return the seconds to the time limit of this process's job; None: there is none, or unknown.

    Slurm 22.05 and older never set ``SLURM_JOB_END_TIME`` (seconds since 1970): then `squeue` is
    asked, which may take some seconds, so one rank should ask.
    """
    if (end := environment.get("SLURM_JOB_END_TIME", "")).isdigit():
        return int(end) - time.time()
    job = job_of(environment)
    if not job or not has_client("squeue"):
        return None
    arguments = ("--noheader", f"--jobs={job}", "--format=%L")
    try:
        text = run_client("squeue", *arguments, timeout=_TIME_LEFT_TIMEOUT_SECONDS)
    except ClusterError:
        return None
    found = _TIME_LEFT.fullmatch(text.strip())
    if found is None:  # UNLIMITED, NOT_SET, INVALID
        return None
    days, hours, minutes, seconds = (int(each or 0) for each in found.groups())
    return 86400.0 * days + 3600 * hours + 60 * minutes + seconds
