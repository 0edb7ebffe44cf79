"""When the job that this process runs in ends."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping

from t2i_hpc.cluster.slurm.client import has_client, run_client
from t2i_hpc.common.errors import ClusterError
from t2i_hpc.common.sessions import job_of

_LEFT = re.compile(r"(?:(\d+)-)?(?:(\d+):)?(\d+):(\d+)")  # days-hours:minutes:seconds
_PATIENCE_SECONDS = 10.0


def seconds_left(environment: Mapping[str, str]) -> float | None:
    """Return the seconds to the time limit of this process's job; None: there is none, or unknown.

    ``SLURM_JOB_END_TIME`` says it (seconds since 1970), but Slurm 22.05 and older never set that:
    then `squeue` is asked, which may take some seconds, so one rank should ask.
    """
    if (end := environment.get("SLURM_JOB_END_TIME", "")).isdigit():
        return int(end) - time.time()
    job = job_of(environment)
    if not job or not has_client("squeue"):
        return None
    words = ("--noheader", f"--jobs={job}", "--format=%L")
    try:
        text = run_client("squeue", *words, patience=_PATIENCE_SECONDS)
    except ClusterError:
        return None
    found = _LEFT.fullmatch(text.strip())
    if found is None:  # UNLIMITED, NOT_SET, INVALID
        return None
    days, hours, minutes, seconds = (int(each or 0) for each in found.groups())
    return 86400.0 * days + 3600 * hours + 60 * minutes + seconds
