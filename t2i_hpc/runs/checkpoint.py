"""Checkpoints on the disk, in a format of no strategy and no world: read, verified, chosen.

A checkpoint is a folder ``checkpoints/<images seen>/`` with

- ``weights.safetensors``: the networks' parameters and buffers by name;
- ``frozen.safetensors``: those of networks that are never trained, apart from the others, so that
  all checkpoints of a run share one file of them (:mod:`t2i_hpc.training.checkpoints.writing`);
- ``optimizers.safetensors``: Adam's moments and step counts by ``module/parameter/moment``, and
  the loss scalers of fp16 by ``scaler/modules``;
- ``state.json``: the counters, what made it, size and SHA-256 of the other files, and the
  checksum of all that.

It is written under a temporary name, flushed, and renamed last; so a folder under its final
name was whole when the power went. Nothing is unpickled.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from t2i_hpc.common.errors import RunError
from t2i_hpc.common.files import sha256_of_file, sha256_of_json
from t2i_hpc.runs.layout import damaged_checkpoints, folder_of, list_checkpoints

_LOG = logging.getLogger("t2i_hpc")
FORMAT = 3
_READ = (2, FORMAT)  # 2: frozen networks among the others
WEIGHTS, OPTIMIZERS, STATE = "weights.safetensors", "optimizers.safetensors", "state.json"
FROZEN = "frozen.safetensors"


@dataclass(frozen=True)
class TrainingProgress:
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
    progress: TrainingProgress
    state: Mapping[str, Any]

    @property
    def weights(self) -> Path:
        """The file of the networks, or of those alone that are trained."""
        return self.folder / WEIGHTS

    @property
    def frozen(self) -> Path | None:
        """The file of networks that are never trained, where they have one of their own."""
        return self.folder / FROZEN if FROZEN in self.state["files"] else None

    @property
    def files(self) -> list[Path]:
        """The files of all networks."""
        return [self.weights] if self.frozen is None else [self.weights, self.frozen]

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


class DamagedCheckpointError(RunError):
    """A checkpoint that is not what was written."""


class DamagedFrozenError(DamagedCheckpointError):
    """One whose frozen networks are not, which other checkpoints may share with it."""


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


def newest_checkpoint(run: Path) -> Checkpoint | None:
    """Return the newest valid checkpoint, naming the damaged ones; None where there is none.

    Raises:
        RunError: one cannot be read, or all are damaged.
    """
    damaged = [path.name for path in damaged_checkpoints(run)]
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
        f"{run / 'checkpoints'} holds damaged checkpoints alone ({', '.join(names)}): restore a "
        "whole copy of one under its number, or delete them all to begin the run anew"
    )


def open_checkpoint(run: Path, images: int) -> Checkpoint:
    """Open the checkpoint of that many images and verify its files.

    Raises:
        RunError: it is missing, damaged or of another format.
    """
    checkpoint = read_state(run, images)
    verify(checkpoint)
    return checkpoint


def read_state(run: Path, images: int) -> Checkpoint:
    """Return the checkpoint of that many images; its tensors' files are not opened.

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
        progress = (
            TrainingProgress(**state["progress"]) if known in _READ else TrainingProgress(images)
        )
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


def load_weights(
    files: Sequence[Path], modules: nn.Module, needed: AbstractSet[str] | None = None
) -> None:
    """Load networks from all `files` of a checkpoint, all of them or nothing.

    Args:
        files: of one checkpoint.
        modules: the networks by name.
        needed: those that must be there, None for all. Another one stays as it is where the files
            hold nothing of it: papers publish their generators and no discriminators.

    Raises:
        RunError: the networks have other names, shapes or types.
    """
    found, wanted = read_tensors(*files), modules.state_dict()
    if needed is not None:
        there = needed | {name.split(".")[0] for name in found}
        wanted = {name: value for name, value in wanted.items() if name.split(".")[0] in there}
    check_fit(files[0], found, wanted)
    modules.load_state_dict(found, strict=needed is None)


def read_tensors(*files: Path) -> dict[str, Tensor]:
    """Return the tensors of safetensors files by name, on the CPU.

    Raises:
        RunError: one is no whole safetensors file.
    """
    found: dict[str, Tensor] = {}
    for path in files:
        try:
            found |= load_file(path)
        except (OSError, SafetensorError) as error:
            raise RunError(f"{path} cannot be read: {error}; take another checkpoint") from error
    return found


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


def _damaged(checkpoint: Checkpoint, name: str, how: str) -> DamagedCheckpointError:
    said = f"checkpoint {checkpoint.folder} is damaged: {name} {how}"
    if name != FROZEN:
        return DamagedCheckpointError(said)
    return DamagedFrozenError(
        f"{said}; restore the files of initial weights that the run's config.yaml names, and "
        "training the run on restores it from them, or copy the file of another checkpoint there"
    )


def _unreadable(folder: Path, error: OSError) -> RunError:
    return RunError(
        f"checkpoint {folder} cannot be read: {error}; repair that and start the same command "
        "again, or move the folder away and the one before is taken"
    )
