"""Watching jobs from the terminal that submitted them: their log, and how they end.

Ctrl-C ends the watching, never the job. A job that is put back into the queue, or that another
one follows, is watched until the work is at its end.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from t2i_hpc.cluster.jobs import JobRecord, read_jobs
from t2i_hpc.cluster.states import JobState, states_of

_LOOK_SECONDS = 1.0
_SURE_SECONDS = 6.0  # a job that is put back may be shown as failed for a moment
_SILENCE_SECONDS = 120.0  # Slurm's controller may be busy
_UNKNOWN = "UNKNOWN"
_DONE = "COMPLETED"


def follow(records: Sequence[JobRecord], folder: Path) -> int:
    """Show what jobs print until they are over; return 0 if all were completed.

    Args:
        records: of one job, whose log is shown, or of an array and what follows it, whose
            numbers are shown.
        folder: where successors are recorded.
    """
    try:
        return _follow_one(records[0], folder) if len(records) == 1 else _follow_many(records)
    except KeyboardInterrupt:
        jobs = " ".join(sorted({record.job.partition("_")[0] for record in records}))
        sys.stderr.write(f"\nno longer following; job {jobs} goes on\n")
        return 0


def _follow_one(record: JobRecord, folder: Path) -> int:
    while True:
        state = _show_log(record)
        successors = [each for each in read_jobs(folder) if each.follows == record.job]
        if not successors:
            sys.stdout.write(f"job {record.job}: {state}\n")
            return 0 if state == _DONE else 1
        record = successors[-1]
        sys.stdout.write(f"job {record.job} goes on\n")


def _show_log(record: JobRecord) -> str:
    """Copy a job's log to standard output until the job is over; return Slurm's word for that."""
    shown, before, over = 0, "", 0.0
    while True:
        state = states_of([record.job]).get(record.job, JobState(record.job, _UNKNOWN))
        if state.waits and state.word != before:
            sys.stdout.write(f"job {record.job} waits{state.reason and f' ({state.reason})'}\n")
        shown = _copy(Path(record.log), shown)
        over = 0.0 if state.lives else over or time.monotonic()
        patience = _SILENCE_SECONDS if state.word == _UNKNOWN else _SURE_SECONDS
        if state.word == _DONE or (over and time.monotonic() - over > patience):
            _copy(Path(record.log), shown)
            return state.word
        before = state.word
        time.sleep(_LOOK_SECONDS)


def _copy(log: Path, start: int) -> int:
    """Show a log from a byte on; return where it ends now."""
    if not log.exists():
        return start
    with log.open("rb") as stream:
        stream.seek(start)
        content = stream.read()
    sys.stdout.write(content.decode(errors="replace"))
    sys.stdout.flush()
    return start + len(content)


def _follow_many(records: Sequence[JobRecord]) -> int:
    before, over = "", 0.0
    while True:
        states = states_of(record.job for record in records)
        words = Counter(state.word for state in states.values())
        line = ", ".join(f"{count} {word}" for word, count in sorted(words.items()))
        if line != before:
            sys.stdout.write(f"{len(records)} jobs: {line or _UNKNOWN}\n")
            sys.stdout.flush()
        lives = any(state.lives for state in states.values())
        over = 0.0 if lives else over or time.monotonic()
        patience = _SURE_SECONDS if len(states) == len(records) else _SILENCE_SECONDS
        if words[_DONE] == len(records) or (over and time.monotonic() - over > patience):
            _copy(Path(records[-1].log), 0)
            return 0 if words[_DONE] == len(records) else 1
        before = line
        time.sleep(_LOOK_SECONDS)
