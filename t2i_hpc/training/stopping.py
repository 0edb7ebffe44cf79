"""When a training ends, and why a session stops before that: signals, files, a time limit.

A signal handler only sets a flag; the loop reads it between steps, all ranks agree, and then
the checkpoint is written. Saving inside a handler hangs in collectives. A second Ctrl-C
exits at once, even from a collective that never returns: a thread of its own receives it.

``touch RUN/stop`` stops like a signal, ``touch RUN/save`` saves once. Either file is deleted
when it is obeyed; one that an earlier session did not see is obeyed by the next.

A session with a time limit, by ``engine.max_minutes`` or its Slurm job's, stops early enough for
the checkpoint: twice the longest save of this session, twice its longest step, and a few seconds.
Before the first save is known, half a minute stands for it, or a twentieth of the session where
that is shorter. Rank 0 decides, which writes the checkpoints.
"""

from __future__ import annotations

import math
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from t2i_hpc.cluster.slurm.client import seconds_left
from t2i_hpc.common.errors import INTERRUPTED
from t2i_hpc.common.process import STOP_SIGNALS, exit_at_once, handled_signals
from t2i_hpc.config.engine import EngineConfig
from t2i_hpc.runs.checkpoint import TrainingProgress
from t2i_hpc.runs.layout import folder_of
from t2i_hpc.training.progress import RunOutput

_POLL_SECONDS = 1.0
_FIRST_GUESS_SECONDS, _FIRST_GUESS = 30.0, 0.05
_SPARE_SECONDS = 3.0


class Limits:
    """The end of a training in images or minutes, and of a session; each rank for itself.

    Args:
        config: the limits asked for.
        stop: what signals asked for.
        output: where rank 0 looks for requests and checkpoints; None on other ranks.
        finished: whether what a training shows of itself ends it after so many images.
    """

    def __init__(
        self,
        config: EngineConfig,
        stop: StopRequest,
        output: RunOutput | None,
        finished: Callable[[int], bool] = lambda images_seen: False,
    ) -> None:
        self._config, self._stop, self._output = config, stop, output
        self._finished = finished
        self._files = RequestFiles(output.folder) if output else None
        # Rank 0 decides, so it alone asks Slurm; the others learn of a stop with the step.
        self.clock = SessionClock(config.max_minutes, seconds_left(os.environ) if output else None)
        self._written: _Written | None = None
        self._told = False

    def reached(self, progress: TrainingProgress) -> bool:
        """Whether the training is at its end."""
        config = self._config
        late = config.minutes is not None and progress.seconds >= 60 * config.minutes
        enough = late or progress.images_seen >= config.images
        # Rank 0 alone has the scores of now; all learn of its end as of any other.
        return enough or (self._output is not None and self._finished(progress.images_seen))

    def stop(self, progress: TrainingProgress) -> bool:
        """Whether the session ends after this step; to be asked once a step."""
        self.clock.step_done()
        if self._files:
            self._files.poll()
        self._learn_of_save()
        reason = self._reason()
        if reason and self._output and not self._told:
            self._told = True
            self._output.line.say(f"{reason}: stopping to save")
        return reason is not None or self.reached(progress)

    def save_is_asked_for(self) -> bool:
        """Whether the file ``save`` was there; asked once, it is forgotten."""
        if not (self._files and self._files.save):
            return False
        self._files.save = False
        return True

    def saving(self, progress: TrainingProgress) -> None:
        """Take note that a checkpoint begins to be written, to learn how long it takes."""
        if self._output:
            folder = folder_of(self._output.folder, progress.images_seen)
            self._written = _Written(folder, time.monotonic())

    def _learn_of_save(self) -> None:
        if self._written and self._written.folder.exists():
            self.clock.saved(time.monotonic() - self._written.begun)
            self._written = None

    def _reason(self) -> str | None:
        if self._stop.requested:
            return self._stop.reason
        if self._files and self._files.stop:
            return "the file stop"
        if self._output and self.clock.is_late():
            return f"time limit in {max(0.0, self.clock.left):.0f} s"
        return None

    def eta(
        self, progress: TrainingProgress, images_per_second: float
    ) -> tuple[float, float | None]:
        """Return the share done and the seconds left, by whichever end comes first."""
        config = self._config
        share = progress.images_seen / config.images
        missing = config.images - progress.images_seen
        left = missing / images_per_second if images_per_second > 0 else None
        if config.minutes is not None:
            share = max(share, progress.seconds / (60 * config.minutes))
            by_time = 60 * config.minutes - progress.seconds
            left = by_time if left is None else min(left, by_time)
        return min(1.0, share), left


@dataclass(frozen=True)
class _Written:
    """A checkpoint that is being written, and when that began."""

    folder: Path
    begun: float


class SessionClock:
    """How long a session has left, and how long it needs to end well.

    Args:
        max_minutes: of the session, from now on; None: any.
        job_left: seconds to the end of the session's job; None: any.
    """

    def __init__(self, max_minutes: float | None, job_left: float | None = None) -> None:
        now = time.monotonic()
        own = math.inf if max_minutes is None else 60 * max_minutes
        self._end = now + min(own, math.inf if job_left is None else job_left)
        self.longest_save = max(0.0, min(_FIRST_GUESS_SECONDS, _FIRST_GUESS * (self._end - now)))
        self._longest_step = 0.0
        self._saves_known = False
        self._mark: float | None = None

    @property
    def left(self) -> float:
        """Seconds to the session's time limit; infinite where it has none."""
        return self._end - time.monotonic()

    @property
    def margin(self) -> float:
        """Seconds that the end of a session takes: a step and a save, twice, and some spare."""
        return 2 * self.longest_save + 2 * self._longest_step + _SPARE_SECONDS

    def step_done(self) -> None:
        """Learn how long a step takes; the first of a session, which compiles, is no measure."""
        now = time.monotonic()
        if self._mark is not None:
            self._longest_step = max(self._longest_step, now - self._mark)
        self._mark = now

    def saved(self, seconds: float) -> None:
        """Learn how long a checkpoint took, from its beginning until it was on the disk."""
        self.longest_save = max(self.longest_save, seconds) if self._saves_known else seconds
        self._saves_known = True

    def is_late(self) -> bool:
        """Whether it is time to stop and save."""
        return self.left <= self.margin


class RequestFiles:
    """The files ``stop`` and ``save`` of a run directory, polled once a second at most."""

    def __init__(self, folder: Path) -> None:
        self._stop, self._save = folder / "stop", folder / "save"
        self._polled = float("-inf")
        self.stop = self.save = False

    def poll(self) -> None:
        """Notice the files that are there, and delete them."""
        if time.monotonic() - self._polled < _POLL_SECONDS:
            return
        self._polled = time.monotonic()
        self.stop = _taken(self._stop) or self.stop
        self.save = _taken(self._save) or self.save


def _taken(path: Path) -> bool:
    try:
        path.unlink()
    except OSError:  # not there, nearly always
        return False
    return True


class StopRequest:
    """Whether a signal asked this process to stop, and which."""

    def __init__(self) -> None:
        self.reason: str | None = None
        self._process = os.getpid()

    @property
    def requested(self) -> bool:
        """Whether there was a signal."""
        return self.reason is not None

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal."""
        if os.getpid() != self._process:
            return  # a loader process inherited the handler; the parent decides
        self.reason = self.reason or signal.Signals(number).name


@contextmanager
def listening() -> Iterator[StopRequest]:
    """Turn stop signals into a flag inside the block; a second SIGINT ends the process.

    Who started the process may have held them back until now: those that came are obeyed.
    """
    request = StopRequest()
    before = {number: signal.signal(number, request) for number in handled_signals()}
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
    try:
        with _second_interrupt_exits():
            yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _second_interrupt_exits() -> Iterator[None]:
    """Count interrupts in a thread: Python's handlers wait for the main thread, this does not."""
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    before = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    threading.Thread(target=_count_interrupts, args=(reader,), name="signals", daemon=True).start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        writer.close()


def _count_interrupts(reader: socket.socket) -> None:
    interrupts = 0
    with reader:
        while numbers := reader.recv(64):
            interrupts += numbers.count(signal.SIGINT)
            if interrupts > 1:
                exit_at_once(INTERRUPTED, "interrupted again: exiting without a save")
