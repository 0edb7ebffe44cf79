"""Which task of a job failed by itself, when all the others only say that they lost it.

srun leaves with the highest exit code of its tasks, and that of a lost rank is higher than that of
a defect or a wrong setting. It also says in the log how each task ended.
"""

from __future__ import annotations

import re
from pathlib import Path

from t2i_hpc.common.exit_codes import LOST_RANK, STOPPED

_START = "Starting with JobEnvironment"
_ENDED = re.compile(r"^srun: error: .*: tasks? [\d,-]+: Exited with exit code (\d+)$", re.MULTILINE)
_LAST_BYTES = 1 << 20


def cause_of(log: Path, code: int) -> int:
    """Return the exit code of a task that did not merely lose another, else `code` itself.

    Args:
        log: of the job, over all its starts; the last one counts.
        code: srun's.
    """
    if code != LOST_RANK or not log.is_file():
        return code
    with log.open("rb") as stream:
        stream.seek(max(0, log.stat().st_size - _LAST_BYTES))
        text = stream.read().decode(errors="replace")
    codes = [int(found) for found in _ENDED.findall(text.rpartition(_START)[2])]
    return next((each for each in codes if each not in (LOST_RANK, STOPPED)), code)
