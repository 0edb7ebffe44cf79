"""Ending the work of runs, so that nothing is put back and nothing is left over.

Jobs are marked in the run's folder first, then Slurm is told, which lets a training save for as
long as the cluster's KillWait. A training without a job gets the file ``stop``, and saves.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from t2i_hpc.cluster.finding import find_jobs
from t2i_hpc.cluster.slurm.client import run_client
from t2i_hpc.cluster.states import JobState, mark_cancelled, states_of
from t2i_hpc.common.errors import ClusterError
from t2i_hpc.common.sessions import is_held

_POLL_SECONDS = 1.0


@dataclass
class Cancelled:
    """What was ended.

    Attributes:
        jobs: numbers of Slurm's jobs.
        local: folders of trainings without a job.
    """

    jobs: list[str] = field(default_factory=list)
    local: list[Path] = field(default_factory=list)


def cancel(folders: Sequence[Path], wait: float) -> Cancelled:
    """End all jobs and trainings of some folders, and wait until they are gone.

    Args:
        folders: run directories and sweeps.
        wait: longest time in seconds.

    Raises:
        ClusterError: Slurm refuses, or something has not ended in that time.
    """
    ended, end = Cancelled(), time.monotonic() + wait
    while True:
        living = _living(folders)
        _cancel_jobs(living, ended)
        held = _stop_local(folders, living, ended)
        if not living and not held:
            break
        if time.monotonic() > end:
            raise ClusterError(_still(living, held, wait))
        time.sleep(_POLL_SECONDS)
    for folder in ended.local:  # one that was at its end never read it
        (folder / "stop").unlink(missing_ok=True)
    return ended


def _living(folders: Sequence[Path]) -> dict[Path, list[JobState]]:
    """Return the jobs of each folder that are not over, of folders that have such."""
    jobs = {folder: find_jobs(folder) for folder in folders}
    states = states_of(job for listed in jobs.values() for job in listed)
    living = {job: state for job, state in states.items() if state.lives}
    own = {
        folder: [living[job] for job in listed if job in living] for folder, listed in jobs.items()
    }
    return {folder: listed for folder, listed in own.items() if listed}


def _cancel_jobs(living: dict[Path, list[JobState]], ended: Cancelled) -> None:
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


def _stop_local(
    folders: Sequence[Path], living: dict[Path, list[JobState]], ended: Cancelled
) -> list[Path]:
    """Ask trainings that no running job explains to stop; return those that go on."""
    explained = {folder for folder, states in living.items() if any(s.runs for s in states)}
    held = [folder for folder in folders if folder not in explained and is_held(folder)]
    for folder in held:
        if folder not in ended.local:
            ended.local.append(folder)
            if jobs := find_jobs(folder):  # one that Slurm does not tell of from here
                mark_cancelled(folder, [jobs[-1]])
            (folder / "stop").touch()
    return held


def _still(living: dict[Path, list[JobState]], held: Sequence[Path], wait: float) -> str:
    jobs = sorted({state.job for states in living.values() for state in states})
    what = [f"job {job}" for job in jobs] + [f"the training in {folder}" for folder in held]
    return (
        f"{', '.join(what[:4])} {'have' if len(what) > 1 else 'has'} not ended after {wait:.0f} s: "
        "it was asked to; look again with t2i_hpc.status, or give wait= more seconds"
    )
