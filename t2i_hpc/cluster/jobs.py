"""Work for a cluster, and the records of its jobs.

A :class:`Work` is one command line and the folder it writes into: a run directory, a folder of
shards. A :class:`Plan` is one or more works that run side by side as a job array, and perhaps a
last one, e.g. a merge. Submitted jobs are in ``FOLDER/jobs/records``, cancelled ones in
``FOLDER/jobs/cancels``, one file a job: several nodes write in the same second, and appending to
one file is not safe on NFS. `status`, `cancel` and a job that starts again read which jobs there
are from these files, and ask Slurm for nothing but their states.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from t2i_hpc.common.files import write_json
from t2i_hpc.runs.sessions import read_sessions

JOBS_FOLDER = "jobs"
_RECORDS, _CANCELS = "records", "cancels"


@dataclass(frozen=True)
class Work:
    """One command, ``python -m t2i_hpc.<task> <arguments>``.

    Attributes:
        task: name of the command.
        arguments: its command line, including ``--config-dir=…`` where one is used.
        folder: what it writes into; its job's files are in ``folder/jobs``.
        merge_gpus: for a merge of other jobs' results, the GPUs that it can use; None for all
            other work.
    """

    task: str
    arguments: tuple[str, ...]
    folder: Path
    merge_gpus: int | None = None


@dataclass(frozen=True)
class Plan:
    """Works side by side, and one that starts when all of them have ended, however they did.

    Attributes:
        name: of the job in the queue.
        works: one or more; more than one are a job array.
        folder: what the plan as a whole belongs to.
        then: the last work, e.g. a merge.
        then_after: jobs in the queue that `then` waits for as well.
    """

    name: str
    works: tuple[Work, ...]
    folder: Path
    then: Work | None = None
    then_after: tuple[str, ...] = ()


@dataclass(frozen=True)
class JobRecord:
    """A job that was submitted.

    Attributes:
        job: Slurm's number, ``123`` or ``123_4`` for an element of an array.
        name: in the queue.
        task, arguments: as in :class:`Work`.
        folder: of the work, as it was given.
        log: file of the first rank's output.
        cluster: the cluster's configuration by key, for a successor.
        submitted: time, ISO 8601 with zone.
        predecessor: the job whose work this one resumes (chain), "" for none.
        after: the jobs that it waits for, e.g. an array that it merges.
    """

    job: str
    name: str
    task: str
    arguments: tuple[str, ...]
    folder: str
    log: str
    cluster: dict[str, Any]
    submitted: str
    predecessor: str = ""
    after: tuple[str, ...] = ()


def record_jobs(folder: Path, records: Sequence[JobRecord]) -> None:
    """Add jobs to a folder's records."""
    for record in records:
        write_json(_path(folder, record.job), dataclasses.asdict(record))


def read_jobs(folder: Path) -> list[JobRecord]:
    """Return the jobs that were submitted for a folder, oldest first."""
    records = []
    for path in (folder / JOBS_FOLDER / _RECORDS).glob("*.json"):
        with contextlib.suppress(OSError, ValueError):  # withdrawn meanwhile
            records.append(_record(json.loads(path.read_text(encoding="utf-8"))))
    return sorted(records, key=_age)


def find_jobs(folder: Path) -> list[str]:
    """Return the numbers of a folder's jobs: those submitted, and what its last session ran as.

    A script that a person submits by hand is known by the session alone.
    """
    submitted = [record.job for record in read_jobs(folder)]
    begun = [session.job for session in read_sessions(folder)[-1:] if session.job]
    return list(dict.fromkeys([*submitted, *begun]))


def forget_job(folder: Path, job: str) -> None:
    """Remove a job that never began, with what submitting it left behind."""
    _path(folder, job).unlink(missing_ok=True)
    for path in (folder / JOBS_FOLDER).glob(f"{job}_*"):
        if re.fullmatch(rf"{job}_(submi\w*|code|config|changes)\.\w+", path.name):
            path.unlink(missing_ok=True)


def chain_of(records: Sequence[JobRecord], job: str) -> list[str]:
    """Return a job and its predecessors, newest first."""
    predecessors = {record.job: record.predecessor for record in records}
    chain = [job]
    while (earlier := predecessors.get(chain[-1], "")) and earlier not in chain:
        chain.append(earlier)
    return chain


def successor_of(records: Sequence[JobRecord], job: str) -> JobRecord | None:
    """Return the job that is to resume a job's work (chain); None where there is none."""
    return next((record for record in reversed(records) if record.predecessor == job), None)


def mark_cancelled(folder: Path, jobs: Sequence[str]) -> None:
    """Note that these jobs of a folder are not to be requeued."""
    marks = folder / JOBS_FOLDER / _CANCELS
    marks.mkdir(parents=True, exist_ok=True)
    for job in jobs:
        (marks / job).touch()


def cancelled_jobs(folder: Path) -> set[str]:
    """Return the jobs of a folder that a person cancelled."""
    return {path.name for path in (folder / JOBS_FOLDER / _CANCELS).glob("[0-9]*")}


def _path(folder: Path, job: str) -> Path:
    return folder / JOBS_FOLDER / _RECORDS / f"{job}.json"


def _record(row: dict[str, Any]) -> JobRecord:
    return JobRecord(**{**row, "arguments": tuple(row["arguments"]), "after": tuple(row["after"])})


def _age(record: JobRecord) -> tuple[str, list[int]]:
    return record.submitted, [int(number) for number in re.findall(r"\d+", record.job)]
