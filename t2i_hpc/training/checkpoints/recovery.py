"""Which checkpoint a session starts from: the newest valid one, the same on all ranks.

Rank 0 reads every byte, since it writes: it sets damaged checkpoints aside and says which one it
takes. The others compare its checksum and the files' sizes, so that hundreds of ranks need not
each hash what they load. On a network file system they may see it later, so they are given time.

What damages a shared file of frozen networks damages all checkpoints at once. So it is verified
before it is linked again, and is restored from another copy or from the initial weights of the
configuration.
"""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from t2i_hpc.common.errors import RunError, UserError
from t2i_hpc.common.files import sha256_of_file
from t2i_hpc.runs.checkpoint import (
    FROZEN,
    Checkpoint,
    DamagedCheckpointError,
    DamagedFrozenError,
    only_damaged,
    open_checkpoint,
    read_state,
    verify,
)
from t2i_hpc.runs.layout import damaged_checkpoints, folder_of, list_checkpoints, set_aside
from t2i_hpc.systems.base import System
from t2i_hpc.training.checkpoints.writing import (
    content_of,
    frozen_records,
    is_whole,
    link_if_whole,
    split_frozen,
    take_snapshot,
    write_tensors,
)
from t2i_hpc.training.world import World, raise_together, share_text

_LOG = logging.getLogger("t2i_hpc")
_WAIT_SECONDS = 30.0
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
            if isinstance(error, DamagedFrozenError) and _is_shared(run, images):
                raise  # setting it aside would set all others aside
            aside = set_aside(folder_of(run, images))
            _LOG.warning("%s; it is kept as %s, and the one before is taken", error, aside.name)
    damaged = [path.name for path in damaged_checkpoints(run)]
    if damaged:
        raise only_damaged(run, damaged)
    return None


def _opened(run: Path, images: int, rebuild: Callable[[], System] | None) -> Checkpoint:
    try:
        return open_checkpoint(run, images)
    except DamagedFrozenError:
        if not restore_frozen(run, images, rebuild):
            raise
        return open_checkpoint(run, images)


def recover_together(
    run: Path,
    world: World,
    wait_seconds: float = _WAIT_SECONDS,
    rebuild: Callable[[], System] | None = None,
) -> Checkpoint | None:
    """Return the checkpoint that rank 0 takes, on every rank; a collective call.

    Args:
        run: the run directory.
        world: this rank's place.
        wait_seconds: that a rank waits for what it does not see yet.
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
        chosen, error = _await(run, int(images), checksum, wait_seconds)
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
    run: Path, images: int, checksum: str, wait_seconds: float
) -> tuple[Checkpoint | None, RunError | None]:
    end = time.monotonic() + wait_seconds
    while True:
        try:
            found = read_state(run, images)
            verify(found, by_size=True)
            if found.checksum == checksum:
                return found, None
            reason = "another one is there"
        except RunError as error:
            reason = str(error)
        if time.monotonic() >= end:
            break
        time.sleep(_POLL_SECONDS)
    return None, RunError(
        f"rank 0 resumes from {folder_of(run, images)}, which another rank does not see as it is "
        f"({reason}): put runs= on a file system that all nodes share"
    )


def restore_frozen(run: Path, images: int, rebuild: Callable[[], System] | None) -> bool:
    """Restore frozen networks that are missing or damaged, in all checkpoints that share them.

    Args:
        run: the run directory.
        images: of one of these checkpoints.
        rebuild: gives the system as it was when the run began; None: it cannot be had.

    Returns:
        Whether they are what was written again.
    """
    record, path = read_state(run, images).state["files"][FROZEN], folder_of(run, images) / FROZEN
    sharing = list(frozen_records(run, record["content"]))
    whole = path.with_name(f".{FROZEN}.tmp")
    try:
        whole.unlink(missing_ok=True)
        linked = any(
            link_if_whole(folder_of(run, n) / FROZEN, whole, theirs) for n, theirs in sharing
        )
        if not linked and not _rebuilt(whole, record, path, rebuild):
            return False
        for number, theirs in sharing:
            if sha256_of_file(whole) == theirs["sha256"]:
                _replace_damaged(folder_of(run, number) / FROZEN, whole, theirs)
    finally:
        whole.unlink(missing_ok=True)
    return True


def _replace_damaged(path: Path, whole: Path, record: Mapping[str, Any]) -> None:
    """Put a link to a whole file, or a copy, in the place of one that is not what was written."""
    fresh = path.with_name(f".{FROZEN}.new")
    try:
        if is_whole(path, record):
            return
        if not link_if_whole(whole, fresh, record):
            shutil.copyfile(whole, fresh)
        fresh.replace(path)
    finally:
        fresh.unlink(missing_ok=True)
    _LOG.warning("%s was damaged or missing and is restored", path)


def _rebuilt(
    target: Path,
    record: Mapping[str, Any],
    damaged: Path,
    rebuild: Callable[[], System] | None,
) -> bool:
    """Write the file from the weights that the run began with, where these are still the same."""
    if rebuild is None:
        return False
    try:
        system = rebuild()
    except UserError as error:
        _LOG.warning("%s cannot be restored from the initial weights: %s", damaged, error)
        return False
    tensors = take_snapshot(split_frozen(system, system.modules.state_dict())[1])
    if content_of(tensors) != record["content"]:
        return False
    return bool(write_tensors(target, tensors)["sha256"] == record["sha256"])


def _is_shared(run: Path, images: int) -> bool:
    """Whether other checkpoints hold the same frozen networks."""
    content = read_state(run, images).state["files"][FROZEN]["content"]
    return any(other != images for other, _ in frozen_records(run, content))
