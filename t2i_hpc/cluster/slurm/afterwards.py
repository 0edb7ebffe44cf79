"""The last step of a job's script: what the end of its task means for the job.

    python -m t2i_hpc.cluster.slurm.afterwards FOLDER CODE

Done and user errors stay what they are. A task that stopped and saved, lost a rank or was killed
goes on: the job is put back into the queue, or another follows it. A job that makes no new
checkpoint gives up after some starts, one that a person cancelled is left alone, and a node that
failed it twice is not used again. What is known is read from files and from Slurm; this process
imports no torch and is done in a second.

FOLDER is where the job was recorded by `t2i_hpc.launch`; for a script submitted by hand it is
the run directory, and the defaults of ``cluster`` hold.
"""

from __future__ import annotations

import dataclasses
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from t2i_hpc.cluster.jobs import JOBS_FOLDER, JobRecord, chain_of, read_jobs
from t2i_hpc.cluster.slurm import going_on
from t2i_hpc.cluster.slurm.bad_nodes import find_bad_nodes
from t2i_hpc.cluster.slurm.causes import cause_of
from t2i_hpc.cluster.states import cancelled_jobs, states_of
from t2i_hpc.common.errors import ClusterError
from t2i_hpc.common.exit_codes import LOST_RANK, STOPPED
from t2i_hpc.common.files import append_json_line, read_json_lines
from t2i_hpc.common.run_layout import newest_images
from t2i_hpc.common.sessions import job_of, read_sessions
from t2i_hpc.config.cluster import ClusterConfig

GAVE_UP = 1
_KILLED = range(129, 193)  # 128 + a signal, as shells and srun say it
_ENDS = "ends.jsonl"
_RECORD_PATIENCE_SECONDS = 5.0


@dataclass(frozen=True)
class Ended:
    """A start of a job whose task has ended.

    Attributes:
        job: its number, ``123`` or ``123_4``.
        code: the task's exit code.
        folder: where its submission is recorded.
        work: what the task wrote into.
        cluster: the job's configuration.
        chain: the job and those that it is the successor of.
        record: its submission; None if a person submitted a script.
    """

    job: str
    code: int
    folder: Path
    work: Path
    cluster: ClusterConfig
    chain: tuple[str, ...]
    record: JobRecord | None


def afterwards(folder: Path, code: int) -> int:
    """Decide and act; return the exit code that the job is to have."""
    if not _goes_on(code):
        return code
    ended = _ended(folder, code)
    if ended.record is not None and not _goes_on(cause := cause_of(Path(ended.record.log), code)):
        return cause
    if ended.cluster.on_stop == "end":
        return code
    if reason := _left_alone(ended):
        _say(f"job {ended.job} is {reason}: it is not put back")
        return code
    if (idle := _count_idle(ended)) > ended.cluster.max_restarts:
        _say(
            f"job {ended.job} gives up: {idle} starts in a row made no new checkpoint "
            f"(cluster.max_restarts={ended.cluster.max_restarts}); the log above says why"
        )
        return GAVE_UP
    bad = find_bad_nodes(read_sessions(ended.work), ended.chain)
    return _go_on(ended, bad)


def _goes_on(code: int) -> bool:
    return code in (STOPPED, LOST_RANK) or code in _KILLED


def _ended(folder: Path, code: int) -> Ended:
    job = job_of(os.environ)
    records = _records(folder, job)
    record = next((each for each in records if each.job == job), None)
    cluster = ClusterConfig(**record.cluster) if record else ClusterConfig()
    work = Path(record.folder) if record else folder
    return Ended(job, code, folder, work, cluster, tuple(chain_of(records, job)), record)


def _records(folder: Path, job: str) -> list[JobRecord]:
    """Read the records; a job that ends at once may be ahead of its own."""
    end = time.monotonic() + _RECORD_PATIENCE_SECONDS
    records = read_jobs(folder)
    while records and job not in {each.job for each in records} and time.monotonic() < end:
        time.sleep(0.5)
        records = read_jobs(folder)
    return records


def _left_alone(ended: Ended) -> str:
    """Say why a job is not to go on; empty if it may."""
    cancelled = cancelled_jobs(ended.folder) | cancelled_jobs(ended.work)
    if cancelled & {ended.job, ended.job.partition("_")[0]}:
        return "cancelled"
    state = states_of([ended.job]).get(ended.job)
    if state is not None and state.word != "RUNNING":
        return state.word  # cancelled, or Slurm puts it back by itself
    return ""


def _count_idle(ended: Ended) -> int:
    """Note how far the work is, and count the last starts that brought it no further."""
    path, images = ended.folder / JOBS_FOLDER / _ENDS, newest_images(ended.work)
    append_json_line(path, {"job": ended.job, "code": ended.code, "images": images})
    reached = [row["images"] for row in read_json_lines(path) if row["job"] in ended.chain]
    before = [-1, *(-1 if images is None else images for images in reached)]
    idle = 0
    for earlier, later in zip(reversed(before[:-1]), reversed(before[1:]), strict=True):
        if later > earlier:
            break
        idle += 1
    return idle


def _go_on(ended: Ended, bad: Sequence[str]) -> int:
    try:
        if bad:
            bad = going_on.affordable(ended.cluster, bad)
        if ended.cluster.on_stop == "chain" and ended.record is not None:
            cluster = dataclasses.replace(
                ended.cluster, exclude=_joined(ended.cluster.exclude, bad)
            )
            job = going_on.chain(ended.record, ended.folder, cluster)
            _say(f"job {ended.job} ended with code {ended.code}: job {job} goes on")
            return 0
        going_on.put_back(_joined(ended.cluster.exclude, bad) if bad else "")
        _say(f"job {ended.job} ended with code {ended.code}: it is put back into the queue")
    except ClusterError as error:
        _say(f"job {ended.job} cannot go on by itself: {error}; the same command goes on")
    return ended.code


def _joined(exclude: str, bad: Sequence[str]) -> str:
    return ",".join([*filter(None, [exclude]), *bad])


def _say(sentence: str) -> None:
    sys.stderr.write(f"t2i_hpc: {sentence}\n")


if __name__ == "__main__":
    sys.exit(afterwards(Path(sys.argv[1]), int(sys.argv[2])))
