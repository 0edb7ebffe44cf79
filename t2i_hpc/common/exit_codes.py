"""What the exit codes of the doors mean to scripts and batch systems.

0 is done and 2 a user error (:mod:`t2i_hpc.common.errors`); after any other of these the same
command resumes from the last checkpoint. A job is not requeued after 77: it needs other settings.

The signals that ask a run to stop.
"""

from __future__ import annotations

import signal

STOPPED = 75
"""A run was asked to stop, and saved (EX_TEMPFAIL: try again later)."""

LOST_RANK = 76
"""Another rank died, stopped or hung; what was saved before is intact."""

INTERRUPTED = 130
"""A second Ctrl-C: left at once, without a save."""

OUT_OF_MEMORY = 77
"""Memory was used up, a GPU's or the machine's; started again it would be so again."""

GAVE_UP = 1
"""A job was started again and again without progress."""

NOTHING_LEFT = 79
"""A job need not start: its work is done, cancelled, or left to another job."""

_KILLED = range(129, 193)  # 128 + a signal, as shells and srun say it


def resumes(code: int) -> bool:
    """Whether the same command goes on after this end: it stopped, lost a rank or was killed."""
    return code in (STOPPED, LOST_RANK) or code in _KILLED


STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


def heeded_signals() -> list[signal.Signals]:
    """Return the stop signals without a hang-up that ``nohup`` told this process to ignore."""
    ignored = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    return [number for number in STOP_SIGNALS if number != signal.SIGHUP or not ignored]
