"""What is put on a cluster, and the record of it in the folder that the work belongs to.

A :class:`Work` is one command line and the folder it writes into (a run directory, a folder of
shards). A :class:`Plan` is works that run side by side as one job array, and perhaps one that
follows them all. What was submitted stands in ``FOLDER/jobs/jobs.jsonl``: from it `status`,
`cancel` and a chained successor know what there is; Slurm is only asked how it fares.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from t2i_hpc.common.files import append_json_line, read_json_lines

JOBS_FOLDER = "jobs"
_LIST = "jobs.jsonl"


@dataclass(frozen=True)
class Work:
    """One command, ``python -m t2i_hpc.<task> <words>``.

    Attributes:
        task: name of the door.
        words: its command line, including ``--config-dir=…`` where one is used.
        folder: what it writes into; its job's files lie in ``folder/jobs``.
    """

    task: str
    words: tuple[str, ...]
    folder: Path


@dataclass(frozen=True)
class Plan:
    """Works side by side, and one that follows when all of them have ended, however they did.

    Attributes:
        name: what the job is called in the queue.
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
        task, words: as in :class:`Work`.
        folder: of the work, as it was given.
        log: file of the first rank's output.
        cluster: the cluster's configuration by key, for a successor.
        submitted: time, ISO 8601 with zone.
        follows: the job whose successor this is (chain), "" for none.
        after: the jobs that it waits for, e.g. an array that it merges.
    """

    job: str
    name: str
    task: str
    words: tuple[str, ...]
    folder: str
    log: str
    cluster: dict[str, Any]
    submitted: str
    follows: str = ""
    after: tuple[str, ...] = ()


def record_jobs(folder: Path, records: Sequence[JobRecord]) -> None:
    """Add jobs to a folder's list."""
    for record in records:
        append_json_line(folder / JOBS_FOLDER / _LIST, dataclasses.asdict(record))


def read_jobs(folder: Path) -> list[JobRecord]:
    """Return the jobs that were submitted for a folder, oldest first."""
    rows = read_json_lines(folder / JOBS_FOLDER / _LIST)
    return [_record(row) for row in rows]


def chain_of(records: Sequence[JobRecord], job: str) -> list[str]:
    """Return a job and those that it is the successor of, newest first."""
    before = {record.job: record.follows for record in records}
    chain = [job]
    while (earlier := before.get(chain[-1], "")) and earlier not in chain:
        chain.append(earlier)
    return chain


def _record(row: dict[str, Any]) -> JobRecord:
    return JobRecord(**{**row, "words": tuple(row["words"]), "after": tuple(row.get("after", ()))})
