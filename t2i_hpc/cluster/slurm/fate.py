"""What Slurm has decided about the job that this process is in, while that job still lives.

At a time limit, after a preemption, or when the batch script is killed, a job is COMPLETING for as
long as ``KillWait``, and nobody requeues it; at that moment ``scontrol requeue`` is still taken.
A job that a person cancelled looks nearly the same. Only ``scontrol show job`` tells them apart.
"""

from __future__ import annotations

import enum
import os
import re
from dataclasses import dataclass
from pathlib import Path

from t2i_hpc.cluster.slurm.client import run_client
from t2i_hpc.common.errors import ClusterError

_FIELD = re.compile(r"(?:^|\s)(\w+)=(\S*)")
_NOTHING = {"", "None", "(null)", "N/A"}


class Fate(enum.Enum):
    """What becomes of a job."""

    RUNS = "it runs"
    TIME_LIMIT = "its time limit is reached"
    PREEMPTED = "it was preempted"
    SCRIPT_LOST = "its batch script was killed"
    STALE_END = "Slurm took the end of an earlier start for that of this one"
    REQUEUED = "it is requeued"
    CANCELLED = "it was cancelled"
    OTHER = "Slurm ends it"
    UNKNOWN = "Slurm gives no answer"

    @property
    def can_be_requeued(self) -> bool:
        """Whether Slurm takes a requeue now, and nobody asked for one or for the job's end."""
        return self in _CAN_BE_REQUEUED

    @property
    def ends_work(self) -> bool:
        """Whether Slurm ends the job although nobody asked for its end."""
        return self in _ENDS_WORK


_ENDS_WORK = {Fate.TIME_LIMIT, Fate.PREEMPTED, Fate.SCRIPT_LOST, Fate.STALE_END}
_CAN_BE_REQUEUED = _ENDS_WORK | {
    Fate.RUNS,
    Fate.UNKNOWN,  # of a task that stopped by itself; Slurm refuses what cannot be
}


@dataclass(frozen=True)
class OwnJob:
    """This process's job as Slurm knows it.

    Attributes:
        fate: what becomes of it.
        exclude: nodes that it shall not get, as a person or an earlier start said; "" for none.
        folder: its working directory; None where Slurm gives no answer.
    """

    fate: Fate
    exclude: str = ""
    folder: Path | None = None


def ask(job: str) -> OwnJob:
    """Ask Slurm about a job, ``123`` or ``123_4``."""
    try:
        text = run_client("scontrol", "show", "job", "--oneliner", job)
    except ClusterError:
        return OwnJob(Fate.UNKNOWN)
    found: dict[str, str] = {}
    for name, value in _FIELD.findall(text):
        found.setdefault(name, "" if value in _NOTHING else value)
    directory = re.search(r"(?:^|\s)WorkDir=(.*?)(?: \w+=|$)", text)
    return OwnJob(
        _fate(found),
        found.get("ExcNodeList", ""),
        Path(directory[1]) if directory else None,
    )


def _fate(found: dict[str, str]) -> Fate:
    state, reason = found.get("JobState", ""), found.get("Reason", "")
    other_start = found.get("Restarts", "0") != (os.environ.get("SLURM_RESTART_COUNT") or "0")
    signs = (
        (not state, Fate.UNKNOWN),
        (state == "RUNNING", Fate.RUNS),
        (other_start or state in ("PENDING", "REQUEUED", "REQUEUE_HOLD"), Fate.REQUEUED),
        (reason == "TimeLimit", Fate.TIME_LIMIT),
        (bool(found.get("PreemptTime")), Fate.PREEMPTED),
        (reason == "JobLaunchFailure", Fate.SCRIPT_LOST),
        # The exit code of the script that asks, which has not ended. A busy controller may handle
        # the last message of the start before only when this one runs.
        (reason == "NonZeroExitCode", Fate.STALE_END),
        (not reason, Fate.CANCELLED),
    )
    return next((fate for holds, fate in signs if holds), Fate.OTHER)
