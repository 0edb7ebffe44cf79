"""The starts of a job, and how far each brought its work: ``FOLDER/jobs/starts-<job>.jsonl``.

One file a job: only its own batch script, or the first rank where that was killed, writes there.
Progress is a training's newest checkpoint, an evaluation's own partial statistics, a build's own
finished shards. A training that advances while its evaluation is requeued again and again is no
progress of the evaluation.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from t2i_hpc.cluster.jobs import JOBS_FOLDER, JobRecord
from t2i_hpc.common.files import append_json_line, read_json_lines
from t2i_hpc.runs.layout import newest_images

_NONE = -1
_TAKEN_AWAY = {"PREEMPTED", "NODE_FAIL", "BOOT_FAIL", "REVOKED", ""}


@dataclass(frozen=True)
class Start:
    """One start of a job.

    Attributes:
        job: Slurm's number.
        restart: how often the job had been started before.
        begun: progress when it began, -1 for none.
        before: Slurm's state of the predecessor, where that left no end.
        code: exit code of the task; None where it left none.
        requeued: whether it was requeued before its task had ended.
    """

    job: str
    restart: int
    begun: int = _NONE
    before: str = ""
    code: int | None = None
    requeued: bool = False


def progress_of(record: JobRecord | None, folder: Path, chain: Collection[str]) -> int:
    """Return how far a work is, a number to compare with its own earlier ones; -1: nowhere.

    Args:
        record: its job; None for a script that was submitted by hand, which trains.
        folder: what it writes into.
        chain: the job and its predecessors.
    """
    task = record.task if record else "train"
    settings = dict(each.partition("=")[::2] for each in record.arguments) if record else {}
    if task == "evaluate":
        return _partial_statistics(folder, settings, chain)
    if task == "generate":
        return sum(1 for _ in folder.glob("*.png"))
    if task == "shards":
        return _finished_shards(folder, settings)
    images = newest_images(folder)
    return _NONE if images is None else images


def note_begin(folder: Path, job: str, restart: int, begun: int, before: str = "") -> None:
    """Note that a start begins."""
    _note(folder, job, {"restart": restart, "begun": begun, "before": before})


def note_end(folder: Path, job: str, restart: int, code: int | None) -> None:
    """Note how the task of a start ended; None: the job is requeued before its task has ended."""
    end = {"requeued": True} if code is None else {"code": code}
    _note(folder, job, {"restart": restart, **end})


def read_starts(folder: Path, jobs: Sequence[str]) -> list[Start]:
    """Return all starts of a chain of jobs, newest first.

    Args:
        folder: of the work.
        jobs: the chain, newest first.
    """
    return [start for job in jobs for start in reversed(_starts(folder, job))]


def count_without_progress(starts: Sequence[Start], reached: int) -> int:
    """Count the last starts that ended by themselves and made no progress.

    A start that Slurm took away (preemption, a lost node) does not count.

    Args:
        starts: newest first.
        reached: the progress now.
    """
    count, later_says = 0, ""
    for start in starts:
        if reached > start.begun:
            break
        count += start.code is not None or later_says not in _TAKEN_AWAY
        reached, later_says = start.begun, start.before
    return count


def _starts(folder: Path, job: str) -> list[Start]:
    merged: dict[int, dict[str, Any]] = {}
    for row in read_json_lines(_path(folder, job)):
        merged.setdefault(row["restart"], {}).update(row)
    return [Start(job=job, **row) for _, row in sorted(merged.items())]


def _note(folder: Path, job: str, row: dict[str, Any]) -> None:
    if folder.is_dir():  # not that of a run that was refused before its folder existed
        append_json_line(_path(folder, job), row)


def _path(folder: Path, job: str) -> Path:
    return folder / JOBS_FOLDER / f"starts-{job}.jsonl"


def _partial_statistics(folder: Path, settings: Mapping[str, str], chain: Collection[str]) -> int:
    """Count the valid files of partial statistics that an evaluation's own jobs have written."""
    from t2i_hpc.common.errors import EvaluationError
    from t2i_hpc.runs.partial_statistics import load_header

    def is_own(path: Path) -> bool:
        try:
            return load_header(path).job in chain
        except EvaluationError:  # cut, or of another format
            return False

    return _count(path for path in _statistics_files(folder, settings) if is_own(path))


def _statistics_files(folder: Path, settings: Mapping[str, str]) -> Iterator[Path]:
    """Yield the files, generated and real, that an evaluation or its one shard may write."""
    from t2i_hpc.runs.partial_statistics import shard_pattern

    shard, checkpoint = settings.get("evaluation.shard", ""), settings.get("checkpoint", "")
    name = shard_pattern(int(shard) if shard.isdecimal() else None)
    images = f"{int(checkpoint):010d}*" if checkpoint.isdecimal() else "*"
    yield from folder.glob(f"evaluations/*/{images}/{name}")
    cache = settings.get("evaluation.cache", "").strip("\"'")
    yield from Path(cache or folder.parent / "real-statistics").glob(f"*/{name}")


def _finished_shards(folder: Path, settings: Mapping[str, str]) -> int:
    """Count the shards of a build, or of its own partition, that are finished."""
    from t2i_hpc.data.build.tar_groups import resolved
    from t2i_hpc.data.build.workspace import Build, Partition, Workspace

    workspace = Workspace(folder / settings.get("split", "train"))
    build = Build.load(workspace)
    if build is None:
        return _NONE
    build = resolved(workspace, build, partial=True)
    own = build.shards_of(Partition.parse(settings.get("partition", "")))
    return _count(number for number in own if workspace.tar(number).is_file())


def _count(found: Iterable[object]) -> int:
    return sum(1 for _ in found) or _NONE
