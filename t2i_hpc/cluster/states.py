"""How jobs fare: what Slurm's queue knows of them, else its accounting, else nobody.

The queue forgets a job some minutes after its end; accounting may be absent or lag behind. One
call of each client asks for any number of jobs. Which jobs a person cancelled stands in
``FOLDER/jobs/cancelled`` before Slurm is told, so that none of them is put back.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from t2i_hpc.cluster.jobs import JOBS_FOLDER
from t2i_hpc.cluster.slurm.client import has_client, run_client
from t2i_hpc.common.errors import ClusterError

_LOG = logging.getLogger("t2i_hpc")
_WAITING = {"PENDING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "RESV_DEL_HOLD", "SPECIAL_EXIT"}
_RUNNING = {"RUNNING", "COMPLETING", "CONFIGURING", "RESIZING", "SIGNALING", "STAGE_OUT"}
_RUNNING |= {"STOPPED", "SUSPENDED"}
_NOTHING = {"", "None", "None assigned", "(null)"}
_CANCELLED = "cancelled"


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
        """Whether it holds nodes."""
        return self.word in _RUNNING

    @property
    def lives(self) -> bool:
        """Whether it is not over yet."""
        return self.waits or self.runs


def states_of(jobs: Iterable[str]) -> dict[str, JobState]:
    """Return the states of jobs by number, of those that Slurm knows.

    That a client is missing or gives no answer is no error: what it would have said is left out,
    and a warning says why. A machine without Slurm answers with nothing, silently.
    """
    wanted = set(jobs)
    numbers = sorted({job.partition("_")[0] for job in wanted})
    if not numbers or not has_client("squeue"):
        return {}
    queue = _from_queue(numbers)
    found = queue or {}
    if not wanted <= found.keys():
        past = _from_accounting(numbers)
        if queue is not None:  # what the queue does not know is over, whatever accounting says
            past = {job: state for job, state in past.items() if not state.lives}
        found = {**past, **found}
    return {job: state for job, state in found.items() if job in wanted}


def mark_cancelled(folder: Path, jobs: Sequence[str]) -> None:
    """Say that these jobs of a folder shall not be put back into the queue."""
    path = folder / JOBS_FOLDER / _CANCELLED
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as stream:
        stream.write("".join(f"{job}\n" for job in jobs))


def cancelled_jobs(folder: Path) -> set[str]:
    """Return the jobs of a folder that a person cancelled."""
    path = folder / JOBS_FOLDER / _CANCELLED
    return set(path.read_text(encoding="utf-8").split()) if path.exists() else set()


def _from_queue(numbers: Sequence[str]) -> dict[str, JobState] | None:
    """Return what the queue knows, None where it gives no answer."""
    # --array: one line an element, also of those that wait. A list that holds a number which
    # the queue forgot is answered without it, but a single such number is refused.
    words = ["--noheader", "--array", "--states=all", f"--jobs={','.join(numbers)}"]
    try:
        lines = run_client("squeue", *words, "--format=%i|%T|%r|%N")
    except ClusterError as error:
        if "Invalid job id" in str(error):
            return {}
        _LOG.warning("%s", error)
        return None
    return _read(lines)


def _from_accounting(numbers: Sequence[str]) -> dict[str, JobState]:
    if not has_client("sacct"):
        return {}
    words = ["--noheader", "--parsable2", "--allocations", "--allusers"]
    words += [f"--jobs={','.join(numbers)}", "--format=JobID,State,Reason,NodeList"]
    try:
        lines = run_client("sacct", *words)
    except ClusterError as error:
        _LOG.warning("%s", error)
        return {}
    return _read(lines)


def _read(lines: str) -> dict[str, JobState]:
    """Read lines of ``job|state|reason|nodes``; of one job the last line counts."""
    states = {}
    for line in lines.splitlines():
        name, word, *rest = line.split("|", 3)
        reason, nodes = ("" if text in _NOTHING else text for text in rest)
        for job in expand(name):
            states[job] = JobState(job, word.split(" ")[0], reason, nodes)  # CANCELLED by 0
    return states


def expand(name: str) -> list[str]:
    """Return the elements of a job array, e.g. ``7_[0-2,5%2]`` → 7_0, 7_1, 7_2, 7_5."""
    job, bracket, inside = name.partition("_[")
    if not bracket:
        return [name]
    elements: list[str] = []
    for part in inside.rstrip("]").partition("%")[0].split(","):
        bounds, _, step = part.partition(":")
        first, _, last = bounds.partition("-")
        numbers = range(int(first), int(last or first) + 1, int(step or 1))
        elements += [f"{job}_{number}" for number in numbers]
    return elements
