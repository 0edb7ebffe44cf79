"""Which checkpoint a session starts from: the newest valid one, the same on all ranks.

Rank 0 reads every byte, since it writes: it sets damaged checkpoints aside and says which one it
takes. The others compare its checksum and the files' sizes, so that hundreds of ranks need not
each hash what they load. On a network file system they may see it later, so they are given time.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path

from t2i_hpc.common.errors import RunError
from t2i_hpc.runs.checkpoint import (
    Checkpoint,
    DamagedCheckpointError,
    DamagedFrozenError,
    look_at,
    only_damaged,
    open_checkpoint,
    verify,
)
from t2i_hpc.runs.checkpoint_folders import set_aside, those_set_aside
from t2i_hpc.runs.frozen import is_shared, mend_frozen
from t2i_hpc.runs.layout import folder_of, list_checkpoints
from t2i_hpc.systems.base import System
from t2i_hpc.training.world import World, raise_together, share_text

_LOG = logging.getLogger("t2i_hpc")
_PATIENCE_SECONDS = 30.0
_POLL_SECONDS = 0.2


def recover(run: Path, rebuild: Callable[[], System] | None = None) -> Checkpoint | None:
    """Return the newest valid checkpoint, None in a new run; set damaged ones aside.

    Frozen networks that are damaged are restored, if need be from the system that `rebuild` gives.

    Raises:
        RunError: one cannot be read or is of another format, or there are damaged ones alone.
    """
    for images in reversed(list_checkpoints(run)):
        try:
            return _opened(run, images, rebuild)
        except DamagedCheckpointError as error:
            if isinstance(error, DamagedFrozenError) and is_shared(run, images):
                raise  # setting it aside would set all others aside
            aside = set_aside(folder_of(run, images))
            _LOG.warning("%s; it is kept as %s, and the one before is taken", error, aside.name)
    damaged = [path.name for path in those_set_aside(run)]
    if damaged:
        raise only_damaged(run, damaged)
    return None


def _opened(run: Path, images: int, rebuild: Callable[[], System] | None) -> Checkpoint:
    try:
        return open_checkpoint(run, images)
    except DamagedFrozenError:
        if not mend_frozen(run, images, rebuild):
            raise
        return open_checkpoint(run, images)


def recover_together(
    run: Path,
    world: World,
    patience: float = _PATIENCE_SECONDS,
    rebuild: Callable[[], System] | None = None,
) -> Checkpoint | None:
    """Return the checkpoint that rank 0 takes, on every rank; a collective call.

    Args:
        run: the run directory.
        world: this rank's place.
        patience: seconds that a rank waits for what it does not see yet.
        rebuild: see :func:`recover`; rank 0 calls it.

    Raises:
        RunError: on all ranks, what the first one has to say.
    """
    chosen: Checkpoint | None = None
    error: RunError | None = None
    if world.is_main:
        chosen, error = _attempt_recovery(run, rebuild)
    raise_together(world, error)
    text = share_text(world, f"{chosen.progress.images_seen} {chosen.checksum}" if chosen else "")
    if not text:
        return None
    if not world.is_main:
        images, checksum = text.split()
        chosen, error = _await(run, int(images), checksum, patience)
    raise_together(world, error)
    return chosen


def _attempt_recovery(
    run: Path, rebuild: Callable[[], System] | None
) -> tuple[Checkpoint | None, RunError | None]:
    try:
        return recover(run, rebuild), None
    except RunError as error:
        return None, error


def _await(
    run: Path, images: int, checksum: str, patience: float
) -> tuple[Checkpoint | None, RunError | None]:
    end = time.monotonic() + patience
    while True:
        try:
            found = look_at(run, images)
            verify(found, by_size=True)
            if found.checksum == checksum:
                return found, None
            reason = "another one lies there"
        except RunError as error:
            reason = str(error)
        if time.monotonic() >= end:
            break
        time.sleep(_POLL_SECONDS)
    return None, RunError(
        f"rank 0 goes on from {folder_of(run, images)}, which another rank does not see as it is "
        f"({reason}): put runs= on a file system that all nodes share"
    )
