"""The record of a session while it lasts: its beginning, and how it ends, however it does.

Only a session that is cut off (kill -9, power) has no end. Writing the record never hides an
error and holds up no exit: what cannot be written in a moment is left out.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path

from t2i_hpc.common.errors import LOST_RANK
from t2i_hpc.common.process import add_exit_hook, briefly, remove_exit_hook
from t2i_hpc.runs.layout import list_checkpoints
from t2i_hpc.runs.sessions import DONE, FAILED, LOST, STOPPED, job_of, write_begin, write_end
from t2i_hpc.training.heartbeat import is_broken_collective
from t2i_hpc.training.world import World

_LOG = logging.getLogger("t2i_hpc")


def run_recorded(run: Path, world: World, hosts: tuple[str, ...], work: Callable[[], int]) -> int:
    """Do a session's work on the first rank between the lines that record it.

    Args:
        run: the run directory.
        world: of the session.
        hosts: of all ranks.
        work: returns the exit code, 0 for done and another for stopped and saved.
    """
    record = _Record(run, world, hosts)
    try:
        code = work()
    except BaseException as error:
        record.fail(error)
        raise
    record.end(STOPPED if code else DONE)
    return code


class _Record:
    """Writes a beginning, and one end."""

    def __init__(self, run: Path, world: World, hosts: tuple[str, ...]) -> None:
        self._run, self._world, self._hosts = run, world, hosts
        self._ended = threading.Lock()
        self._identity = ""
        add_exit_hook(self._on_exit)
        self._write(self._begin)

    def fail(self, error: BaseException) -> None:
        """Write that the session failed, unless its heartbeat is about to say what was lost."""
        if self._world.size > 1 and is_broken_collective(error):
            return  # the process exits at once, with what the monitor found
        lines = str(error).strip().splitlines()
        self.end(FAILED, lines[0] if lines else type(error).__name__)

    def end(self, outcome: str, message: str = "", lost_hosts: tuple[str, ...] = ()) -> None:
        """Write how the session ended; the first that knows is believed."""
        if self._ended.acquire(blocking=False):
            remove_exit_hook(self._on_exit)
            briefly(partial(self._write, partial(self._finish, outcome, message, lost_hosts)))

    def _on_exit(self, code: int, sentence: str, lost_hosts: tuple[str, ...]) -> None:
        outcome = LOST if code == LOST_RANK else FAILED
        self.end(outcome, sentence.removeprefix("t2i_hpc: "), lost_hosts)

    def _begin(self) -> None:
        self._identity = write_begin(
            self._run,
            job=job_of(os.environ),
            restart=int(os.environ.get("SLURM_RESTART_COUNT", "") or 0),
            hosts=self._hosts,
            ranks=self._world.size,
            pid=os.getpid(),
            images=self._saved(),
        )

    def _finish(self, outcome: str, message: str, lost_hosts: tuple[str, ...]) -> None:
        if self._identity:
            images = self._saved()
            write_end(
                self._run, self._identity, outcome, images, message=message, lost_hosts=lost_hosts
            )

    def _saved(self) -> int:
        return max(list_checkpoints(self._run), default=0)

    def _write(self, line: Callable[[], None]) -> None:
        try:
            line()
        except OSError as error:
            _LOG.warning("the session is not recorded in %s: %s", self._run, error)
