"""Writes checkpoints, so that each is whole or not there, while the training runs.

What is to be written is copied to the CPU at once; then training resumes, and a thread writes,
hashes and flushes, all of which leave the interpreter to others. One is in flight at a time.

Networks that a training never changes are in every checkpoint by name, but on the disk once a
run: in a file of their own, which later checkpoints hard-link. So a folder stays whole by itself,
wherever it is copied to, and the file system deletes the numbers with the last folder that has
them. On a file system without hard links every checkpoint has a file of its own.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from t2i_hpc.common.errors import RunError
from t2i_hpc.common.files import fsync_folder, sha256_of_file, sha256_of_json, write_json
from t2i_hpc.runs.checkpoint import (
    FORMAT,
    FROZEN,
    OPTIMIZERS,
    STATE,
    WEIGHTS,
    Checkpoint,
    TrainingProgress,
    read_state,
)
from t2i_hpc.runs.layout import folder_of, list_checkpoints, retire, temporary_of
from t2i_hpc.systems.base import System

Tensors = Mapping[str, Tensor]
_HEADS = 1_000_000  # bytes that names, shapes and counters take besides the numbers


@dataclass(frozen=True)
class Snapshot:
    """A training at one instant: networks and optimizers' state, both on the CPU.

    `origin` says what made it: strategy, world, precision, versions. `frozen` holds the networks
    that have a file of their own because nothing trains them.
    """

    weights: Mapping[str, Tensor]
    moments: Mapping[str, Tensor]
    progress: TrainingProgress
    origin: Mapping[str, Any]
    frozen: Mapping[str, Tensor] = field(default_factory=dict)


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
            "those before are intact: make room or repair the folder, and the same command resumes "
            "from the last one"
        ) from error


def check_space(run: Path, *tensors: Mapping[str, Tensor]) -> None:
    """Refuse what the disk has no room for.

    Raises:
        RunError: says how much is missing, and where.
    """
    needed, free = size_in_bytes(*tensors) + _HEADS, shutil.disk_usage(run).free
    if free < needed:
        raise RunError(
            f"the disk of {run} has {free / 1e6:,.1f} MB left and a checkpoint takes "
            f"{needed / 1e6:,.1f} MB: make room for {(needed - free) / 1e6:,.1f} MB more (a "
            "smaller engine.checkpoint.keep needs less); nothing was deleted, and the same "
            "command resumes from the last checkpoint"
        )


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Write a file and flush it; return its SHA-256 and its size."""
    path.touch()
    allowed = path.stat().st_mode  # by the umask; save_file would leave a file for this user alone
    save_file(dict(tensors), path)
    path.chmod(allowed)
    with path.open("rb+") as stream:
        os.fsync(stream.fileno())
    return {"sha256": sha256_of_file(path), "bytes": path.stat().st_size}


def take_snapshot(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return contiguous copies on the CPU.

    From a GPU they come through pinned memory, all at once, and the call waits for the last:
    then the optimizer may continue. torch keeps pinned memory that is given back, so later
    snapshots find theirs.
    """
    copies = {name: _copy(value.detach()) for name, value in tensors.items()}
    for device in {value.device for value in tensors.values() if value.is_cuda}:
        torch.cuda.current_stream(device).synchronize()
    return copies


def size_in_bytes(*groups: Mapping[str, Tensor]) -> int:
    """Return how many bytes the numbers of the tensors take."""
    return sum(value.nbytes for tensors in groups for value in tensors.values())


def _copy(value: Tensor) -> Tensor:
    copy = torch.empty(value.shape, dtype=value.dtype, pin_memory=value.is_cuda)
    return copy.copy_(value, non_blocking=True)


def split_frozen(system: System, tensors: Tensors) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return what training may change and what it does not, of a system's networks.

    Whatever is taken for frozen is compared before it is shared, so a mistake costs space alone.
    """
    trained = {id(p) for module in system.trainable.values() for p in module.parameters()}
    trained |= {id(p) for ema in system.emas for p in ema.target.parameters()}
    prefixes = tuple(f"{name}." for name in _frozen_modules(system.modules, "", trained))
    frozen = {name: value for name, value in tensors.items() if name.startswith(prefixes)}
    return {name: value for name, value in tensors.items() if name not in frozen}, frozen


def _frozen_modules(module: nn.Module, name: str, trained: set[int]) -> Iterator[str]:
    """Yield the names of the largest modules that have parameters, none of them trained."""
    own = [id(parameter) for parameter in module.parameters()]
    if name and own and trained.isdisjoint(own):
        yield name
        return
    for key, child in module.named_children():
        yield from _frozen_modules(child, f"{name}.{key}" if name else key, trained)


def write_frozen(run: Path, path: Path, tensors: Tensors) -> dict[str, Any]:
    """Write a checkpoint's frozen networks, or link them to an earlier checkpoint's.

    Returns:
        What its state.json says of the file.
    """
    content = content_of(tensors)
    for images, record in frozen_records(run, content):
        if link_if_whole(folder_of(run, images) / FROZEN, path, record):
            return record
    return {**write_tensors(path, tensors), "content": content}


def frozen_records(run: Path, content: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the checkpoints that hold these frozen networks, newest first, and what they say."""
    for images in reversed(list_checkpoints(run)):
        try:
            record = read_state(run, images).state["files"].get(FROZEN)
        except RunError:
            continue
        if record is not None and record.get("content") == content:
            yield images, record


def link_if_whole(source: Path, target: Path, record: Mapping[str, Any]) -> bool:
    """Link a file that is what was written; return whether it is, and could be."""
    try:
        os.link(source, target)
        if is_whole(target, record):
            return True
    except OSError:
        pass
    target.unlink(missing_ok=True)
    return False


def is_whole(path: Path, record: Mapping[str, Any]) -> bool:
    """Whether a file is there and is what was written."""
    try:
        return bool(sha256_of_file(path) == record["sha256"])
    except (FileNotFoundError, IsADirectoryError):
        return False


def content_of(tensors: Tensors) -> str:
    """Return the SHA-256 of names, types, shapes and numbers, whatever file they are in."""
    digest = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


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
