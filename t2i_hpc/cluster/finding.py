"""Which runs a person means: a run directory, a sweep, or a folder that holds some of them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from t2i_hpc.cluster.jobs import JOBS_FOLDER, read_jobs
from t2i_hpc.cluster.sweeps import is_sweep, read_sweep
from t2i_hpc.common.errors import RunError, nearest
from t2i_hpc.common.sessions import read_sessions


def find_runs(words: Iterable[str]) -> list[Path]:
    """Return the run directories of some words, each once, in their order.

    A point of a sweep counts whether or not it has begun.

    Raises:
        RunError: a word names no run, no sweep and no folder of runs.
    """
    found: dict[Path, None] = {}
    for word in words:
        found.update(dict.fromkeys(_runs_of(Path(word))))
    return list(found)


def is_run(folder: Path) -> bool:
    """Return whether a run was begun or submitted in a folder."""
    return (folder / "config.yaml").is_file() or (folder / JOBS_FOLDER).is_dir()


def find_jobs(folder: Path) -> list[str]:
    """Return the numbers of a folder's jobs: those submitted, and what its last session ran as.

    A script that a person submits by hand is known by the session alone.
    """
    submitted = [record.job for record in read_jobs(folder)]
    begun = [session.job for session in read_sessions(folder)[-1:] if session.job]
    return list(dict.fromkeys([*submitted, *begun]))


def _runs_of(folder: Path) -> list[Path]:
    if is_sweep(folder):
        return [point.run for point in read_sweep(folder).points]
    if is_run(folder):
        return [folder]
    inside = sorted(path for path in folder.glob("*") if is_run(path) or is_sweep(path))
    if not inside:
        raise RunError(_nothing(folder))
    return [run for path in inside for run in _runs_of(path)]


def _nothing(folder: Path) -> str:
    if folder.is_dir():
        return f"{folder} holds no run yet: name a run directory or a sweep, or start a run"
    known = [path.name for path in folder.parent.glob("*") if is_run(path) or is_sweep(path)]
    hint = f": {nearest(folder.name, known)}" if known else ""
    return f"{folder}: there is no such folder{hint or '; runs lie in runs/<name>-<hash>'}"
