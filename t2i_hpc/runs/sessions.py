"""The sessions of a run: every start and end of it, in ``RUN/sessions.jsonl``.

A run lives in many sessions: time limits, preemption and lost nodes end one, and the next resumes.
The first rank writes a line when a session begins and one when it ends; a session that has no
second line was cut off (kill -9, power) or still runs, as the run's lock shows. Who shows a
run's state, and who decides whether a job is started again, reads them.
"""

from __future__ import annotations

import datetime
import fcntl
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from t2i_hpc.common.files import append_json_line, read_json_lines

_FILE, _LOCK = "sessions.jsonl", "lock"
DONE, STOPPED, FAILED, LOST = "done", "stopped", "failed", "lost"


@dataclass(frozen=True)
class Session:
    """One start of a run.

    Attributes:
        identity: names the session in its two lines.
        began, ended: time, ISO 8601 with zone; `ended` is None where no end was written.
        job: the batch system's number of the job, "" for none.
        restart: how often the batch system had started this job before.
        hosts: names of the nodes, in order of their ranks, each once.
        ranks: number of ranks.
        pid: of the first rank, on hosts[0].
        first_images, last_images: images seen at the beginning, and at the last checkpoint.
        outcome: done, stopped, failed, lost; None where no end was written.
        message: what was said at the end, one line.
        lost_hosts: nodes of ranks that died or hung.
    """

    identity: str
    began: str
    job: str = ""
    restart: int = 0
    hosts: tuple[str, ...] = ()
    ranks: int = 1
    pid: int = 0
    first_images: int = 0
    last_images: int | None = None
    ended: str | None = None
    outcome: str | None = None
    message: str = ""
    lost_hosts: tuple[str, ...] = ()


def job_of(environment: Mapping[str, str]) -> str:
    """Return the batch system's number of this job, ``123`` or ``123_4``; "" for none."""
    if "SLURM_ARRAY_JOB_ID" in environment and "SLURM_ARRAY_TASK_ID" in environment:
        return f"{environment['SLURM_ARRAY_JOB_ID']}_{environment['SLURM_ARRAY_TASK_ID']}"
    return environment.get("SLURM_JOB_ID", "")


def write_begin(
    run: Path, *, job: str, restart: int, hosts: tuple[str, ...], ranks: int, pid: int, images: int
) -> str:
    """Write that a session begins; return its identity."""
    identity = uuid.uuid4().hex[:8]
    row = {
        "identity": identity,
        "began": _now(),
        "job": job,
        "restart": restart,
        "hosts": hosts,
        "ranks": ranks,
        "pid": pid,
        "first_images": images,
    }
    append_json_line(run / _FILE, row)
    return identity


def write_end(
    run: Path,
    identity: str,
    outcome: str,
    images: int,
    *,
    message: str = "",
    lost_hosts: tuple[str, ...] = (),
) -> None:
    """Write how a session ended, and the images seen at its last checkpoint."""
    row = {
        "identity": identity,
        "ended": _now(),
        "outcome": outcome,
        "last_images": images,
        "message": message,
        "lost_hosts": lost_hosts,
    }
    append_json_line(run / _FILE, row)


def read_sessions(run: Path) -> list[Session]:
    """Return a run's sessions, oldest first; none where it never began."""
    merged: dict[str, dict[str, Any]] = {}
    for row in read_json_lines(run / _FILE):
        merged.setdefault(row["identity"], {}).update(row)
    return [_session(row) for row in merged.values() if "began" in row]


def is_held(run: Path) -> bool:
    """Return whether a process writes into the run, on any machine whose locks are seen here."""
    try:
        with (run / _LOCK).open() as stream:
            fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # no lock was ever made, or the file system knows none
        return False
    return False


def _session(row: dict[str, Any]) -> Session:
    lists = {name: tuple(row.get(name, ())) for name in ("hosts", "lost_hosts")}
    return Session(**{**row, **lists})


def _now() -> str:
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
