"""Ends the work of runs: nothing is requeued afterwards, and no process stays behind.

Jobs are marked as cancelled in the run's folder before Slurm is told. Slurm lets a training save
for as long as the cluster's KillWait. A training without a job gets the file ``stop``, and saves.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from t2i_hpc.cluster.jobs import find_jobs, mark_cancelled
from t2i_hpc.cluster.slurm.client import (
    Answer,
    JobState,
    Pace,
    Polling,
    ask_states,
    name_jobs,
    run_client,
)
from t2i_hpc.common.errors import ClusterError
from t2i_hpc.runs.sessions import is_held

_LOCAL_SECONDS = 1.0  # between two looks at this machine's own trainings
_NO_ANSWER = "UNKNOWN"

Living = Mapping[Path, Sequence[JobState]]
"""By folder, the jobs that are not over."""


@dataclass
class Cancelled:
    """What was ended.

    Attributes:
        jobs: numbers of Slurm's jobs.
        local: folders of trainings without a job.
    """

    jobs: list[str] = field(default_factory=list)
    local: list[Path] = field(default_factory=list)


def cancel(folders: Sequence[Path], wait: float, pace: Pace | None = None) -> Cancelled:
    """End all jobs and trainings of some folders, and wait until they are gone.

    Args:
        folders: run directories and sweeps.
        wait: longest time in seconds.
        pace: how often Slurm is asked.

    Raises:
        ClusterError: Slurm refuses or gives no answer, or something has not ended in that time.
    """
    ended, polling, end = Cancelled(), Polling(pace), time.monotonic() + wait
    answer = _ask(folders)
    if not any(map(is_held, folders)):
        answer.living()  # nothing here can be stopped without Slurm
    polling.asked(news=True)
    while True:
        living = _living(folders, answer, ended)
        _cancel_jobs(living, ended)
        held = _stop_local(folders, living, ended)
        if not living and not held:
            break
        time.sleep(_LOCAL_SECONDS)
        late = time.monotonic() > end
        if living and (late or polling.is_due()):
            before, answer = answer, _ask(folders)
            polling.asked(news=answer.states != before.states)
        if late and (_living(folders, answer, ended) or any(map(is_held, folders))):
            raise ClusterError(_still(_living(folders, answer, ended), held, wait))
    for folder in ended.local:  # a training that was at its end never read it
        (folder / "stop").unlink(missing_ok=True)
    if unknown := answer.unanswered - set(ended.jobs):
        stopped = ", ".join(map(str, ended.local))
        raise ClusterError(
            f"{stopped} has stopped, but nobody knows whether {name_jobs(unknown)} still waits or "
            f"runs ({answer.reason}): cancel again where Slurm answers"
        )
    return ended


def _ask(folders: Sequence[Path]) -> Answer:
    return ask_states(job for folder in folders for job in find_jobs(folder))


def _living(folders: Sequence[Path], answer: Answer, ended: Cancelled) -> Living:
    """Return the jobs that are not over, and cancelled ones whose state is unknown."""
    living: dict[Path, list[JobState]] = {}
    for folder in folders:
        for job in find_jobs(folder):
            state = answer.states.get(job)
            if state is None and job in answer.unanswered and job in ended.jobs:
                state = JobState(job, _NO_ANSWER)
            if state is not None and state.lives:
                living.setdefault(folder, []).append(state)
    return living


def _cancel_jobs(living: Living, ended: Cancelled) -> None:
    """Cancel what was not cancelled before; a successor may appear while its job ends."""
    fresh: dict[str, None] = {}
    for folder, states in living.items():
        new = [state.job for state in states if state.job not in ended.jobs]
        if new:
            mark_cancelled(folder, new)
            fresh.update(dict.fromkeys(new))
    if fresh:
        ended.jobs += fresh
        run_client("scancel", *fresh)


def _stop_local(folders: Sequence[Path], living: Living, ended: Cancelled) -> list[Path]:
    """Ask trainings that no running job explains to stop; return those that still run."""
    explained = {folder for folder, states in living.items() if any(s.runs for s in states)}
    held = [folder for folder in folders if folder not in explained and is_held(folder)]
    for folder in held:
        if folder not in ended.local:
            ended.local.append(folder)
            if jobs := find_jobs(folder):  # perhaps a job that Slurm does not show here
                mark_cancelled(folder, [jobs[-1]])
            (folder / "stop").touch()
    return held


def _still(living: Living, held: Sequence[Path], wait: float) -> str:
    jobs = sorted({state.job for states in living.values() for state in states})
    what = [f"job {job}" for job in jobs] + [f"the training in {folder}" for folder in held]
    return (
        f"{', '.join(what[:4])} {'have' if len(what) > 1 else 'has'} not ended after {wait:.0f} s: "
        "it was asked to; see t2i_hpc.status, or give wait= more seconds"
    )
