"""Networks that a training never changes: in every checkpoint by name, on the disk once a run.

They lie in a file of their own, ``frozen.safetensors``. A checkpoint whose file would hold what
an earlier one's holds gets a hard link to that: a folder stays whole by itself, wherever it is
copied to, and the file system deletes the numbers with the last folder that has them. On a file
system without hard links every checkpoint has a file of its own.

What damages a shared file damages all checkpoints at once. So it is looked at before it is
linked again, and is mended from another copy or from the initial weights of the configuration.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from t2i_hpc.common.errors import RunError, UserError
from t2i_hpc.common.files import sha256_of_file
from t2i_hpc.runs.checkpoint import FROZEN, look_at, take_snapshot, write_tensors
from t2i_hpc.runs.layout import folder_of, list_checkpoints
from t2i_hpc.systems.base import System

Tensors = Mapping[str, Tensor]
_LOG = logging.getLogger("t2i_hpc")


def split_frozen(system: System, tensors: Tensors) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return what training may change and what it does not, of a system's networks.

    Whatever is taken for frozen is compared before it is shared, so a mistake costs room alone.
    """
    trained = {id(p) for part in system.trainable.values() for p in part.parameters()}
    trained |= {id(p) for average in system.emas for p in average.target.parameters()}
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
    for images, record in _records(run, content):
        if _link(folder_of(run, images) / FROZEN, path, record):
            return record
    return {**write_tensors(path, tensors), "content": content}


def mend_frozen(run: Path, images: int, rebuild: Callable[[], System] | None) -> bool:
    """Put frozen networks back that are missing or damaged, in all checkpoints that share them.

    Args:
        run: the run directory.
        images: of one of these checkpoints.
        rebuild: gives the system as it was when the run began; None: it cannot be had.

    Returns:
        Whether they are what was written again.
    """
    record, path = look_at(run, images).state["files"][FROZEN], folder_of(run, images) / FROZEN
    sharing = list(_records(run, record["content"]))
    whole = path.with_name(f".{FROZEN}.tmp")
    try:
        whole.unlink(missing_ok=True)
        linked = any(_link(folder_of(run, n) / FROZEN, whole, theirs) for n, theirs in sharing)
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
    beside = path.with_name(f".{FROZEN}.new")
    try:
        if _is_whole(path, record):
            return
        if not _link(whole, beside, record):
            shutil.copyfile(whole, beside)
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
    _LOG.warning("%s was damaged or missing and is put back", path)


def is_shared(run: Path, images: int) -> bool:
    """Whether other checkpoints hold the same frozen networks."""
    content = look_at(run, images).state["files"][FROZEN]["content"]
    return any(other != images for other, _ in _records(run, content))


def content_of(tensors: Tensors) -> str:
    """Return the SHA-256 of names, types, shapes and numbers, whatever file they lie in."""
    digest = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


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


def _records(run: Path, content: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the checkpoints that hold these frozen networks, newest first, and what they say."""
    for images in reversed(list_checkpoints(run)):
        try:
            record = look_at(run, images).state["files"].get(FROZEN)
        except RunError:
            continue
        if record is not None and record.get("content") == content:
            yield images, record


def _link(source: Path, target: Path, record: Mapping[str, Any]) -> bool:
    """Link a file that is what was written; return whether it is, and could be."""
    try:
        os.link(source, target)
        if _is_whole(target, record):
            return True
    except OSError:
        pass
    target.unlink(missing_ok=True)
    return False


def _is_whole(path: Path, record: Mapping[str, Any]) -> bool:
    try:
        return bool(sha256_of_file(path) == record["sha256"])
    except (FileNotFoundError, IsADirectoryError):
        return False
