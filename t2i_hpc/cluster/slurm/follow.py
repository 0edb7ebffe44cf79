"""Follows jobs from the terminal that submitted them: their log, and how they end.

Ctrl-C ends the following, never the job. A job that is requeued, or whose successor resumes it, is
followed until its work ends. The log is read every second; Slurm is asked less often.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from t2i_hpc.cluster.jobs import JobRecord, read_jobs, successor_of
from t2i_hpc.cluster.slurm.client import Answer, Pace, Polling, ask_states, has_client
from t2i_hpc.common.errors import ClusterError

_LOG_SECONDS = 1.0
_SURE_SECONDS = 6.0  # a requeued job may be shown as failed for a moment
_FORGOTTEN_SECONDS = 120.0  # the queue may know a new job later, accounting an old one
_UNKNOWN = "UNKNOWN"
_DONE = "COMPLETED"


def follow(records: Sequence[JobRecord], folder: Path, pace: Pace | None = None) -> int:
    """Show what jobs print until they are over; return 0 if all were completed.

    Args:
        records: of one job, whose log is shown, or of an array and its merge, whose states are
            counted.
        folder: where successors (chain) are recorded.
        pace: how often Slurm is asked.

    Raises:
        ClusterError: Slurm cannot be asked from here.
    """
    if not has_client("squeue"):
        raise ClusterError(
            "squeue is not installed here, so the end of a job cannot be seen: read "
            f"{records[0].log}"
        )
    try:
        if len(records) == 1:
            return _follow_one(records[0], folder, pace)
        return _Watch(records, pace, folder).until_over()
    except KeyboardInterrupt:
        jobs = " ".join(sorted({record.job.partition("_")[0] for record in records}))
        sys.stderr.write(f"\nno longer following; job {jobs} continues\n")
        return 0


def _follow_one(record: JobRecord, folder: Path, pace: Pace | None) -> int:
    while True:
        watch = _Watch([record], pace)
        code = watch.until_over()
        successors = [each for each in read_jobs(folder) if each.predecessor == record.job]
        if not successors:
            sys.stdout.write(f"job {record.job}: {watch.state}\n")
            return code
        record = successors[-1]
        sys.stdout.write(f"job {record.job} resumes it\n")


class _Watch:
    """Some jobs that are followed to their end.

    Attributes:
        state: Slurm's name of the state in which the first one ended.
    """

    def __init__(
        self, records: Sequence[JobRecord], pace: Pace | None, folder: Path | None = None
    ) -> None:
        self.state, self._folder = _UNKNOWN, folder
        self._records, self._polling = list(records), Polling(pace)
        self._log = Path(records[0].log) if len(records) == 1 else None
        self._shown, self._line, self._over, self._silent = 0, "", 0.0, False

    def until_over(self) -> int:
        """Show what is new until all jobs are over; return 0 if all were completed."""
        while True:
            due = self._polling.is_due()
            asked = ask_states(each.job for each in self._records) if due else None
            if self._log:
                self._shown = _copy(self._log, self._shown)
            if asked and self._is_over(asked):
                if not self._log:
                    _copy(Path(self._records[-1].log), 0)
                return 0 if all(self._state(asked, each) == _DONE for each in self._records) else 1
            time.sleep(_LOG_SECONDS)

    def _is_over(self, asked: Answer) -> bool:
        """Print what changed; return whether the answer is the last one."""
        if asked.unanswered:
            self._report_silence(asked.reason)
            self._polling.asked(news=False)
            return False
        self._silent = False
        self.state = self._state(asked, self._records[0])
        line = self._line_of(asked)
        self._polling.asked(news=line != self._line)
        if line != self._line and line:
            sys.stdout.write(f"{line}\n")
            sys.stdout.flush()
        self._line = line
        if self._replace_by_successors(asked):
            return False
        if any(state.lives for state in asked.states.values()):
            self._over = 0.0
            return False
        if all(self._state(asked, each) == _DONE for each in self._records):
            return True
        self._over = self._over or time.monotonic()
        known = len(asked.states) == len(self._records)
        return time.monotonic() - self._over > (_SURE_SECONDS if known else _FORGOTTEN_SECONDS)

    def _replace_by_successors(self, asked: Answer) -> bool:
        """Follow the successors of jobs that have ended; return whether there are any."""
        if self._folder is None:
            return False
        jobs, before = read_jobs(self._folder), self._records
        over = {job for job, state in asked.states.items() if not state.lives}
        self._records = [
            (successor_of(jobs, each.job) or each) if each.job in over else each for each in before
        ]
        return self._records != before

    def _line_of(self, asked: Answer) -> str:
        if self._log is None:
            names = Counter(state.name for state in asked.states.values())
            counts = ", ".join(f"{count} {name}" for name, count in sorted(names.items()))
            return f"{len(self._records)} jobs: {counts or _UNKNOWN}"
        state = asked.states.get(self._records[0].job)
        if state is None or not state.waits:
            return ""
        return f"job {state.job} waits{state.reason and f' ({state.reason})'}"

    def _report_silence(self, reason: str) -> None:
        if not self._silent:
            sys.stderr.write(f"{reason}; still following, Ctrl-C to end\n")
        self._silent = True

    def _state(self, asked: Answer, record: JobRecord) -> str:
        state = asked.states.get(record.job)
        return state.name if state else _UNKNOWN


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
