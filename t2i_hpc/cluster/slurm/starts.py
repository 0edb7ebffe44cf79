"""The starts of a job, and how far each brought its work: ``FOLDER/jobs/starts-<job>.jsonl``.

One file a job: only its own batch script, or the first rank where that was killed, writes there.
What counts as progress depends on the task: a training's newest checkpoint, an evaluation's own
partial statistics, a build's own finished shards. A training that goes on while its evaluation is
requeued again and again is no progress of the evaluation.

Nodes that lost this job's ranks twice within a day: the requeued job does without them.

Only what is certain counts: a node that the ranks of a start *named* as lost, where the task then
ended by itself. Preemption, a time limit and ``kill -9`` say nothing of a node, and a node that
went down is taken out by Slurm itself. A wrong exclusion is worse than a third failure, so the job
keeps at least as many nodes like its own as it needs.
"""

from __future__ import annotations

import datetime
import os
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from t2i_hpc.cluster.jobs import JOBS_FOLDER, JobRecord
from t2i_hpc.cluster.slurm.client import run_client, split_rows
from t2i_hpc.common.errors import ClusterError
from t2i_hpc.common.files import append_json_line, read_json_lines
from t2i_hpc.common.terminal import say_in_log
from t2i_hpc.runs.layout import newest_images
from t2i_hpc.runs.sessions import Session

_NONE = -1
_SLURMS_OWN = {"PREEMPTED", "NODE_FAIL", "BOOT_FAIL", "REVOKED", ""}


@dataclass(frozen=True)
class Start:
    """One start of a job.

    Attributes:
        job: Slurm's number.
        restart: how often the job had been started before.
        begun: progress when it began, -1 for none.
        before: Slurm's state of the job that this one resumes, where that left no end.
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
    """Return how far a work is, in steps that are only comparable with each other; -1: nowhere.

    Args:
        record: its job; None for a script that was submitted by hand, which trains.
        folder: what it writes into.
        chain: the job and those that it is the successor of.
    """
    task = record.task if record else "train"
    words = dict(word.partition("=")[::2] for word in record.words) if record else {}
    if task == "evaluate":
        return _partial_statistics(folder, words, chain)
    if task == "shards":
        return _finished_tars(folder, words)
    images = newest_images(folder)
    return _NONE if images is None else images


def note_begin(folder: Path, job: str, restart: int, begun: int, before: str = "") -> None:
    """Note that a start begins."""
    _note(folder, job, {"restart": restart, "begun": begun, "before": before})


def note_end(folder: Path, job: str, restart: int, code: int | None) -> None:
    """Note how the task of a start ended; None: the job is requeued before its task has ended."""
    end = {"requeued": True} if code is None else {"code": code}
    _note(folder, job, {"restart": restart, **end})


def starts_of(folder: Path, jobs: Sequence[str]) -> list[Start]:
    """Return all starts of a chain of jobs, newest first.

    Args:
        folder: of the work.
        jobs: the chain, newest first.
    """
    return [start for job in jobs for start in reversed(_starts(folder, job))]


def count_idle(starts: Sequence[Start], reached: int) -> int:
    """Count the last starts that ended by themselves and brought the work no further.

    A start that Slurm took away (preemption, a lost node) is passed over.

    Args:
        starts: newest first.
        reached: the progress now.
    """
    idle, later_says = 0, ""
    for start in starts:
        if reached > start.begun:
            break
        idle += start.code is not None or later_says not in _SLURMS_OWN
        reached, later_says = start.begun, start.before
    return idle


def _starts(folder: Path, job: str) -> list[Start]:
    merged: dict[int, dict[str, Any]] = {}
    for row in read_json_lines(_path(folder, job)):
        merged.setdefault(row["restart"], {}).update(row)
    return [Start(job=job, **row) for _, row in sorted(merged.items())]


def _note(folder: Path, job: str, row: dict[str, Any]) -> None:
    if folder.is_dir():  # not that of a run that was refused before it was there
        append_json_line(_path(folder, job), row)


def _path(folder: Path, job: str) -> Path:
    return folder / JOBS_FOLDER / f"starts-{job}.jsonl"


def _partial_statistics(folder: Path, words: Mapping[str, str], chain: Collection[str]) -> int:
    """Count the valid files of partial statistics that an evaluation's own jobs have written."""
    from t2i_hpc.common.errors import EvaluationError
    from t2i_hpc.evaluation.partial_statistics import load_header

    def is_own(path: Path) -> bool:
        try:
            return load_header(path).job in chain
        except EvaluationError:  # cut, or of another format
            return False

    return _count(path for path in _files_of_parts(folder, words) if is_own(path))


def _files_of_parts(folder: Path, words: Mapping[str, str]) -> Iterator[Path]:
    """Give the files of both sides that an evaluation, or its one shard, may have written."""
    shard, checkpoint = words.get("evaluation.shard", ""), words.get("checkpoint", "")
    name = f"part-{int(shard):05d}-of-*.npz" if shard.isdecimal() else "part-*.npz"
    images = f"{int(checkpoint):010d}*" if checkpoint.isdecimal() else "*"
    yield from folder.glob(f"evaluations/*/{images}/{name}")
    cache = words.get("evaluation.cache", "").strip("\"'")
    yield from Path(cache or folder.parent / "real-statistics").glob(f"*/{name}")


def _finished_tars(folder: Path, words: Mapping[str, str]) -> int:
    """Count the shards of a build, or of its own partition, that are finished."""
    from t2i_hpc.data.build.workspace import Build, Part, Workspace

    workspace = Workspace(folder / words.get("split", "train"))
    build = Build.load(workspace)
    own = Part.parse(words.get("partition", "")).of(len(build.identities)) if build else ()
    return _count(number for number in own if workspace.tar(number).is_file())


def _count(found: Iterable[object]) -> int:
    return sum(1 for _ in found) or _NONE


_TWICE = 2
_RECENT = datetime.timedelta(days=1)
_USABLE = "idle,mixed,allocated,completing,reserved"


def find_bad_nodes(
    sessions: Iterable[Session], starts: Sequence[Start], now: datetime.datetime | None = None
) -> list[str]:
    """Return the nodes that were lost twice.

    Args:
        sessions: of the run.
        starts: of this job and those that it resumes.
        now: the time, if not this moment.
    """
    ended = {(start.job, start.restart) for start in starts if start.code is not None}
    since = (now or datetime.datetime.now(datetime.timezone.utc)) - _RECENT
    failures: Counter[str] = Counter()
    for session in sessions:
        recent = session.ended is not None and _time(session.ended) >= since
        if recent and (session.job, session.restart) in ended:
            failures.update(set(session.lost_hosts))
    return sorted(node for node, count in failures.items() if count >= _TWICE)


def spare_nodes(bad: Sequence[str]) -> list[str]:
    """Return the bad nodes if the job can do without them, else none; say which.

    The nodes that this job has now fit it; so do others of the same partition with equal
    processors, memory, GPUs and features.
    """
    if not bad:
        return []
    nodes = ", ".join(bad)
    try:
        alike = _nodes_alike()
    except ClusterError as error:
        say_in_log(f"{nodes} failed twice, and is used again all the same: {error}")
        return []
    if len(alike - set(bad)) < int(os.environ.get("SLURM_JOB_NUM_NODES") or 1):
        say_in_log(f"{nodes} failed twice, but there are no other nodes like it")
        return []
    say_in_log(f"{nodes} failed twice and is not used again by this job")
    return list(bad)


def _nodes_alike() -> set[str]:
    """Return the usable nodes that are like one of this job's own.

    Raises:
        ClusterError: Slurm gives no answer.
    """
    partition = os.environ.get("SLURM_JOB_PARTITION", "")
    words = ["--noheader", "--Node", "--format=%N|%c|%m|%G|%f"]
    words += [f"--partition={partition}"] if partition else []
    own = _read(run_client("sinfo", *words, f"--nodes={os.environ.get('SLURM_JOB_NODELIST', '')}"))
    usable = _read(run_client("sinfo", *words, f"--states={_USABLE}"))
    kinds = set(own.values())
    return {node for node, kind in usable.items() if kind in kinds}


def _read(lines: str) -> dict[str, str]:
    rows, _ = split_rows(lines, 2)
    return {row[0]: row[1] for row in rows}


def _time(text: str) -> datetime.datetime:
    return datetime.datetime.fromisoformat(text)
