"""What is put on a cluster, and the record of it in the folder that the work belongs to.

A :class:`Work` is one command line and the folder it writes into (a run directory, a folder of
shards). A :class:`Plan` is works that run side by side as one job array, and perhaps one that
follows them all. What was submitted is in ``FOLDER/jobs/records``, one file a job: several nodes
write there in the same second, and appending to one file is not safe on NFS. From it `status`,
`cancel` and a resubmitted job know what there is; Slurm is only asked for their states.

What a job was submitted with: code, packages, configuration; written beside its log.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

from t2i_hpc.common.files import git, read_json_lines, write_json, write_text

JOBS_FOLDER = "jobs"
_RECORDS = "records"
_OLD_LIST = "jobs.jsonl"  # of versions that appended


@dataclass(frozen=True)
class Work:
    """One command, ``python -m t2i_hpc.<task> <words>``.

    Attributes:
        task: name of the door.
        words: its command line, including ``--config-dir=…`` where one is used.
        folder: what it writes into; its job's files lie in ``folder/jobs``.
        merge_gpus: for a merge of what other jobs computed, the GPUs that it can use; None for
            all other work.
    """

    task: str
    words: tuple[str, ...]
    folder: Path
    merge_gpus: int | None = None


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
    """Add jobs to a folder's records."""
    for record in records:
        write_json(_path(folder, record.job), dataclasses.asdict(record))


def read_jobs(folder: Path) -> list[JobRecord]:
    """Return the jobs that were submitted for a folder, oldest first."""
    rows = read_json_lines(folder / JOBS_FOLDER / _OLD_LIST)
    for path in (folder / JOBS_FOLDER / _RECORDS).glob("*.json"):
        with contextlib.suppress(OSError, ValueError):  # withdrawn meanwhile
            rows.append(json.loads(path.read_text(encoding="utf-8")))
    return sorted((_record(row) for row in rows), key=_age)


def forget_job(folder: Path, job: str) -> None:
    """Remove a job that never began, with what submitting it left behind."""
    _path(folder, job).unlink(missing_ok=True)
    for path in (folder / JOBS_FOLDER).glob(f"{job}_*"):
        if re.fullmatch(rf"{job}_(submi\w*|code|config|changes)\.\w+", path.name):
            path.unlink(missing_ok=True)


def chain_of(records: Sequence[JobRecord], job: str) -> list[str]:
    """Return a job and those that it is the successor of, newest first."""
    before = {record.job: record.follows for record in records}
    chain = [job]
    while (earlier := before.get(chain[-1], "")) and earlier not in chain:
        chain.append(earlier)
    return chain


def successor_of(records: Sequence[JobRecord], job: str) -> JobRecord | None:
    """Return the job that is to resume a job's work (chain); None where there is none."""
    return next((record for record in reversed(records) if record.follows == job), None)


def _path(folder: Path, job: str) -> Path:
    return folder / JOBS_FOLDER / _RECORDS / f"{job}.json"


def _record(row: dict[str, Any]) -> JobRecord:
    return JobRecord(**{**row, "words": tuple(row["words"]), "after": tuple(row.get("after", ()))})


def _age(record: JobRecord) -> tuple[str, list[int]]:
    return record.submitted, [int(number) for number in re.findall(r"\d+", record.job)]


@dataclass(frozen=True)
class Snapshot:
    """The state of code and packages at one moment.

    Attributes:
        commit: of the checkout that the code runs from; "" outside of one.
        changes: what differs from it, as git shows it.
        packages: installed versions by name.
        configuration: YAML, resolved.
    """

    commit: str
    changes: str
    packages: dict[str, str]
    configuration: str

    @classmethod
    def take(cls, configuration: str) -> Snapshot:
        """Look at the checkout and the packages as they are now."""
        found = {each.metadata["Name"]: each.version for each in distributions()}
        packages = dict(sorted((name, version) for name, version in found.items() if name))
        return cls(git("rev-parse", "HEAD").strip(), git("diff", "HEAD"), packages, configuration)

    def write(self, folder: Path, job: str) -> None:
        """Write ``JOB_code.json``, ``JOB_config.yaml`` and perhaps ``JOB_changes.diff``."""
        state = {"commit": self.commit, "changed": bool(self.changes), "packages": self.packages}
        write_json(folder / f"{job}_code.json", state)
        write_text(folder / f"{job}_config.yaml", self.configuration)
        if self.changes:
            write_text(folder / f"{job}_changes.diff", self.changes)
