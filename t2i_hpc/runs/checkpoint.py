"""One safetensors file: written to the disk, and read, in a sentence where it cannot be.

Tensors as they are now, apart from what training does to them next.

Whether a checkpoint's tensors are those of a system, looked at before any is loaded.

Checkpoints that are whole or not there, in a format of no engine and no world.

A checkpoint is a folder ``checkpoints/<images seen>/`` with

- ``weights.safetensors``: the networks' parameters and buffers by name;
- ``frozen.safetensors``: those of networks that are never trained, apart from the others, so that
  all checkpoints of a run share one file of them (:mod:`t2i_hpc.runs.frozen`);
- ``optimizers.safetensors``: Adam's moments and step counts by ``part/parameter/moment``, and
  the loss scalers of fp16 by ``scaler/parts``;
- ``state.json``: the counters, what made it, size and SHA-256 of the other files, and the
  checksum of all that.

It is written under a temporary name, flushed, and renamed last; so a folder under its final
name was whole when the power went. Nothing is unpickled.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from t2i_hpc.common.errors import RunError
from t2i_hpc.common.files import sha256_of_file, sha256_of_json
from t2i_hpc.runs.checkpoint_folders import those_set_aside
from t2i_hpc.runs.layout import folder_of, list_checkpoints
from t2i_hpc.systems.base import System, trainable

MOMENTS = ("exp_avg", "exp_avg_sq")


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Write a file and flush it; return its SHA-256 and its size."""
    path.touch()
    allowed = path.stat().st_mode  # by the umask; save_file would leave a file for this user alone
    save_file(dict(tensors), path)
    path.chmod(allowed)
    with path.open("rb+") as stream:
        os.fsync(stream.fileno())
    return {"sha256": sha256_of_file(path), "bytes": path.stat().st_size}


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a file by name.

    Raises:
        RunError: it is no whole safetensors file.
    """
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise RunError(f"{path} cannot be read: {error}; take another checkpoint") from error


def take_snapshot(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return contiguous copies on the CPU.

    From a GPU they come through pinned memory, all at once, and the call waits for the last:
    then the optimizer may go on. torch keeps pinned memory that is given back, so later
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


_SCALER = "scaler/"


def check_fit(path: Path, found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    """Compare names, shapes and types.

    Raises:
        RunError: names the file and the first tensor that does not fit.
    """
    reason = _misfit(found, wanted)
    if reason:
        raise RunError(
            f"{path} does not fit this system: {reason}; it was written by another version of "
            "t2i_hpc or for another system, so take the one that wrote it or another run"
        )


def check_moments(path: Path, found: Mapping[str, Tensor], system: System) -> None:
    """Compare the optimizers' state; a part has all of its own, or none before its first step.

    Raises:
        RunError: names the file and the first tensor that does not fit.
    """
    wanted: dict[str, Tensor] = {}
    for name in system.trainable:
        if any(key.startswith(f"{name}/") for key in found):
            wanted |= _moments_of(name, system)
    for key in found:
        if key.startswith(_SCALER):
            wanted[key] = torch.empty(2)
    check_fit(path, found, wanted)


def _moments_of(name: str, system: System) -> dict[str, Tensor]:
    wanted: dict[str, Tensor] = {}
    for key, parameter in trainable(system.trainable[name]):
        wanted |= {f"{name}/{key}/{moment}": parameter for moment in MOMENTS}
        wanted[f"{name}/{key}/step"] = torch.empty(())
    return wanted


def _misfit(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> str | None:
    for name in wanted:
        if name not in found:
            return f"it has no {name}"
    for name, value in found.items():
        if name not in wanted:
            return f"it has {name}, which the system has not"
        if value.shape != wanted[name].shape or value.dtype != wanted[name].dtype:
            return f"{name} is {_describe(value)}, not {_describe(wanted[name])}"
    return None


def _describe(value: Tensor) -> str:
    return f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"


_LOG = logging.getLogger("t2i_hpc")
FORMAT = 3
_READ = (2, FORMAT)  # 2: frozen networks among the others
WEIGHTS, OPTIMIZERS, STATE = "weights.safetensors", "optimizers.safetensors", "state.json"
FROZEN = "frozen.safetensors"


class DamagedCheckpointError(RunError):
    """A checkpoint that is not what was written."""


class DamagedFrozenError(DamagedCheckpointError):
    """One whose frozen networks are not, which other checkpoints may share with it."""


@dataclass(frozen=True)
class Progress:
    """How far a run is: images and steps done, seconds of training over all sessions."""

    images_seen: int = 0
    step: int = 0
    seconds: float = 0.0

    def crossed(self, interval: int, batch_size: int) -> bool:
        """Whether the last step reached a multiple of `interval` images; 0 is never reached."""
        before = self.images_seen - batch_size
        return bool(interval) and self.images_seen // interval > before // interval


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on the disk; `state` is what its state.json says."""

    folder: Path
    progress: Progress
    state: Mapping[str, Any]

    @property
    def weights(self) -> Path:
        """The file of the networks, or of those alone that are trained."""
        return self.folder / WEIGHTS

    def tensors(self) -> dict[str, Tensor]:
        """Return all networks' parameters and buffers by name.

        Raises:
            RunError: a file is no whole safetensors file.
        """
        frozen = {} if self.frozen is None else read_tensors(self.frozen)
        return {**read_tensors(self.weights), **frozen}

    @property
    def frozen(self) -> Path | None:
        """The file of networks that are never trained, where they lie apart."""
        return self.folder / FROZEN if FROZEN in self.state["files"] else None

    @property
    def moments(self) -> Path:
        """The optimizers' file."""
        return self.folder / OPTIMIZERS

    @property
    def sha256(self) -> str:
        """Identity of the weights."""
        return str(self.state["files"][WEIGHTS]["sha256"])

    @property
    def checksum(self) -> str:
        """Identity of the whole checkpoint."""
        return str(self.state["checksum"])

    @property
    def vocabulary(self) -> str:
        """Identity of the vocabulary that the tokens were numbers of; empty: not recorded."""
        return str(self.state["origin"].get("vocabulary", ""))


def look_at(run: Path, images: int) -> Checkpoint:
    """Return the checkpoint of that many images; its tensors' files are not looked at.

    Raises:
        DamagedCheckpointError: its state.json is missing, or not what was written.
        RunError: it cannot be read, or is of another format.
    """
    folder = folder_of(run, images)
    try:
        state = json.loads((folder / STATE).read_bytes())
        written = {key: value for key, value in state.items() if key != "checksum"}
        known = state["format"]
        whole = state.get("checksum") == sha256_of_json(written)
        progress = Progress(**state["progress"]) if known in _READ else Progress(images)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
        raise DamagedCheckpointError(f"checkpoint {folder} has no {STATE}") from error
    except OSError as error:
        raise _unreadable(folder, error) from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DamagedCheckpointError(f"checkpoint {folder}: {STATE} is damaged") from error
    if known not in _READ and type(known) is int and (whole or "checksum" not in state):
        raise RunError(
            f"checkpoint {folder} is of format {known}, and this version of t2i_hpc reads "
            f"format {FORMAT}: take the version that wrote it, or begin another run"
        )
    if not whole or progress.images_seen != images:
        raise DamagedCheckpointError(f"checkpoint {folder}: {STATE} is not what was written")
    return Checkpoint(folder, progress, state)


def verify(checkpoint: Checkpoint, *, by_size: bool = False) -> None:
    """Compare the tensors' files with what was written.

    Args:
        checkpoint: which.
        by_size: compare sizes alone; enough for a rank where another has read every byte.

    Raises:
        DamagedCheckpointError: one is missing or another.
        RunError: one cannot be read.
    """
    for name, written in checkpoint.state["files"].items():
        path = checkpoint.folder / name
        try:
            same = path.stat().st_size == written["bytes"]
            same = same and (by_size or sha256_of_file(path) == written["sha256"])
        except (FileNotFoundError, IsADirectoryError) as error:
            raise _damaged(checkpoint, name, "is missing") from error
        except OSError as error:
            raise _unreadable(checkpoint.folder, error) from error
        if not same:
            of_what = "size" if by_size else "SHA-256"
            raise _damaged(checkpoint, name, f"does not match its {of_what}")


def _damaged(checkpoint: Checkpoint, name: str, how: str) -> DamagedCheckpointError:
    said = f"checkpoint {checkpoint.folder} is damaged: {name} {how}"
    if name != FROZEN:
        return DamagedCheckpointError(said)
    return DamagedFrozenError(
        f"{said}; put back the files of initial weights that the run's config.yaml names, and "
        "training the run on restores it from them, or put a copy back of another checkpoint's"
    )


def open_checkpoint(run: Path, images: int) -> Checkpoint:
    """Open the checkpoint of that many images and verify its files.

    Raises:
        RunError: it is missing, damaged or of another format.
    """
    checkpoint = look_at(run, images)
    verify(checkpoint)
    return checkpoint


def _unreadable(folder: Path, error: OSError) -> RunError:
    return RunError(
        f"checkpoint {folder} cannot be read: {error}; mend that and start the same command again, "
        "or move the folder away and the one before is taken"
    )


def newest_checkpoint(run: Path) -> Checkpoint | None:
    """Return the newest valid checkpoint, naming the damaged ones; None where there is none.

    Raises:
        RunError: one cannot be read, or there are damaged ones alone.
    """
    damaged = [path.name for path in those_set_aside(run)]
    for images in reversed(list_checkpoints(run)):
        try:
            return open_checkpoint(run, images)
        except DamagedCheckpointError as error:
            damaged.append(folder_of(run, images).name)
            _LOG.warning("%s; the one before is taken", error)
    if damaged:
        raise only_damaged(run, damaged)
    return None


def only_damaged(run: Path, names: Sequence[str]) -> RunError:
    """Return the error of a run all of whose checkpoints are damaged."""
    return RunError(
        f"{run / 'checkpoints'} holds damaged checkpoints alone ({', '.join(names)}): put a whole "
        "copy of one back under its number, or delete them all to begin the run anew"
    )


def choose_checkpoint(run: Path, which: str) -> Checkpoint:
    """Return ``latest`` or the checkpoint of a number of images.

    Raises:
        RunError: the run has none, or not that one.
    """
    if which == "latest":
        newest = newest_checkpoint(run)
        if newest is None:
            raise RunError(f"{run} has no checkpoint yet: train it first")
        return newest
    there = list_checkpoints(run)
    if not which.isdecimal() or int(which) not in there:
        raise RunError(
            f"checkpoint={which} is not in {run}; it has: "
            f"{', '.join(map(str, there)) or 'none'} (images), or latest"
        )
    return open_checkpoint(run, int(which))


def load_weights(checkpoint: Checkpoint, modules: nn.Module) -> None:
    """Load the networks, all of them or nothing.

    Raises:
        RunError: the networks have other names, shapes or types.
    """
    found = checkpoint.tensors()
    check_fit(checkpoint.weights, found, modules.state_dict())
    modules.load_state_dict(found)


def read_moments(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """Return the optimizers' state by ``part/parameter/moment``."""
    return read_tensors(checkpoint.moments)
