"""What the exit codes of the doors mean to scripts and batch systems.

0 is done and 2 a user error (:mod:`t2i_hpc.common.errors`); with any other of these the same
command goes on from the last checkpoint.
"""

from __future__ import annotations

STOPPED = 75
"""A run was asked to stop, and saved (EX_TEMPFAIL: try again later)."""

LOST_RANK = 76
"""Another rank died, stopped or hung; what was saved before is intact."""

INTERRUPTED = 130
"""A second Ctrl-C: left at once, without a save."""
