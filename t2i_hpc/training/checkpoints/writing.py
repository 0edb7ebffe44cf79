"""Writes checkpoints, so that each is whole or not there, and beside the training.

What is to be written is copied to the CPU at once; then training goes on, and a thread writes,
hashes and flushes, all of which leave the interpreter to others. One is in flight at a time.
"""

from __future__ import annotations

import contextlib
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import Tensor, nn

from t2i_hpc.common.errors import RunError
from t2i_hpc.common.files import fsync_folder, sha256_of_json, write_json
from t2i_hpc.runs.checkpoint import (
    FORMAT,
    FROZEN,
    OPTIMIZERS,
    STATE,
    WEIGHTS,
    Checkpoint,
    Progress,
    size_in_bytes,
    take_snapshot,
    write_tensors,
)
from t2i_hpc.runs.checkpoint_folders import retire, temporary_of
from t2i_hpc.runs.frozen import write_frozen
from t2i_hpc.runs.layout import folder_of

_HEADS = 1_000_000  # bytes that names, shapes and counters take beside the numbers


@dataclass(frozen=True)
class Snapshot:
    """A training at one instant: networks and optimizers' state, both on the CPU.

    `origin` says what made it: engine, world, precision, versions. `frozen` holds the networks
    that lie apart because nothing trains them.
    """

    weights: Mapping[str, Tensor]
    moments: Mapping[str, Tensor]
    progress: Progress
    origin: Mapping[str, Any]
    frozen: Mapping[str, Tensor] = field(default_factory=dict)


def save_checkpoint(
    run: Path, modules: nn.Module, moments: Mapping[str, Tensor], progress: Progress
) -> Checkpoint:
    """Write a checkpoint of networks and moments as they are now, and wait for it."""
    weights = take_snapshot(modules.state_dict())
    return write_checkpoint(run, Snapshot(weights, take_snapshot(moments), progress, {}))


def write_checkpoint(run: Path, snapshot: Snapshot) -> Checkpoint:
    """Write a checkpoint; one of the same number of images is replaced.

    Raises:
        RunError: the disk is full or refuses; then everything is as it was before.
    """
    folder = folder_of(run, snapshot.progress.images_seen)
    temporary = temporary_of(folder)
    with said_of_disk(run):
        try:
            state = _write_files(run, temporary, snapshot)
            before = retire(folder) if folder.exists() else None
            temporary.rename(folder)
            fsync_folder(folder.parent)
            if before:
                shutil.rmtree(before)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return Checkpoint(folder, snapshot.progress, state)


def _write_files(run: Path, folder: Path, snapshot: Snapshot) -> dict[str, Any]:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    files = {
        WEIGHTS: write_tensors(folder / WEIGHTS, snapshot.weights),
        OPTIMIZERS: write_tensors(folder / OPTIMIZERS, snapshot.moments),
    }
    if snapshot.frozen:
        files[FROZEN] = write_frozen(run, folder / FROZEN, snapshot.frozen)
    state: dict[str, Any] = {
        "format": FORMAT,
        "progress": asdict(snapshot.progress),
        "files": files,
        "origin": dict(snapshot.origin),
    }
    state["checksum"] = sha256_of_json(state)
    write_json(folder / STATE, state)
    fsync_folder(folder)
    return state


@contextlib.contextmanager
def said_of_disk(run: Path) -> Iterator[None]:
    """Turn what a disk refuses into a sentence.

    Raises:
        RunError: in place of an error of the system.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise RunError(
            f"a checkpoint in {run / 'checkpoints'} could not be written or deleted: {error}; "
            "those before are intact: make room or mend the folder, and the same command goes on "
            "from the last one"
        ) from error


def check_space(run: Path, *tensors: Mapping[str, Tensor]) -> None:
    """Refuse to begin what the disk has no room for.

    Raises:
        RunError: says how much is missing, and where.
    """
    needed, free = size_in_bytes(*tensors) + _HEADS, shutil.disk_usage(run).free
    if free < needed:
        raise RunError(
            f"the disk of {run} has {free / 1e6:,.1f} MB left and a checkpoint takes "
            f"{needed / 1e6:,.1f} MB: make room for {(needed - free) / 1e6:,.1f} MB more (a "
            "smaller engine.checkpoint.keep needs less); nothing was deleted, and the same "
            "command goes on from the last checkpoint"
        )


class BackgroundWriter:
    """Does one job at a time in a thread, and keeps its error until it is asked for.

    The thread is ended with the process: what it had half done is no checkpoint.
    """

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None

    @property
    def failed(self) -> bool:
        """Whether a job ended with an error that nobody has asked for yet."""
        return self._error is not None

    def start(self, job: Callable[[], None]) -> None:
        """Begin a job; the one before must have been waited for."""
        self._thread = threading.Thread(
            target=self._run, args=(job,), name="checkpoint", daemon=True
        )
        self._thread.start()

    def wait(self) -> tuple[Exception | None, float]:
        """Wait for the job, if there is one; return its error, and the seconds of waiting."""
        start = time.monotonic()
        if self._thread is not None:
            self._thread.join()
        self._thread, error, self._error = None, self._error, None
        return error, time.monotonic() - start

    def _run(self, job: Callable[[], None]) -> None:
        try:
            job()
        except Exception as error:  # raised again by the thread that asks
            self._error = error
