"""Checkpoints that are whole or not there, in a neutral format.

A checkpoint is a folder ``checkpoints/<images seen>/`` with

- ``weights.safetensors``: every network's parameters and buffers by name;
- ``optimisers.safetensors``: Adam's moments and step counts by ``part/parameter/moment``;
- ``state.json``: the counters, and size and SHA-256 of the other files.

It is written under a temporary name, flushed, and renamed last; so a folder under its final
name was whole when the power went. On loading the newest valid one is taken. Nothing is
unpickled, and nothing depends on the number of ranks.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from t2i_hpc.common.errors import RunError
from t2i_hpc.common.files import fsync_folder, sha256_of_file, write_json

_LOG = logging.getLogger("t2i_hpc")
_FORMAT = 1
_FILES = ("weights.safetensors", "optimisers.safetensors")


@dataclass(frozen=True)
class Progress:
    """How far a run is: images and steps done, seconds of training over all sessions."""

    images_seen: int = 0
    step: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint on the disk."""

    folder: Path
    progress: Progress

    @property
    def weights(self) -> Path:
        """The networks' file."""
        return self.folder / "weights.safetensors"

    @property
    def sha256(self) -> str:
        """Identity of the weights."""
        state = json.loads((self.folder / "state.json").read_text(encoding="utf-8"))
        return str(state["files"]["weights.safetensors"]["sha256"])


def save_checkpoint(
    run: Path,
    modules: nn.Module,
    parts: Mapping[str, nn.Module],
    optimisers: Mapping[str, torch.optim.Optimizer],
    progress: Progress,
) -> Checkpoint:
    """Write a checkpoint; one of the same number of images is replaced."""
    folder = run / "checkpoints" / f"{progress.images_seen:010d}"
    temporary = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    moments = {
        f"{part}/{name}": value
        for part, optimiser in optimisers.items()
        for name, value in _moments(parts[part], optimiser).items()
    }
    _save(temporary / _FILES[0], modules.state_dict())
    _save(temporary / _FILES[1], moments)
    files = {
        name: {
            "sha256": sha256_of_file(temporary / name),
            "bytes": (temporary / name).stat().st_size,
        }
        for name in _FILES
    }
    write_json(
        temporary / "state.json",
        {"format": _FORMAT, "progress": asdict(progress), "files": files},
    )
    fsync_folder(temporary)
    if folder.exists():
        shutil.rmtree(folder)
    temporary.rename(folder)
    fsync_folder(folder.parent)
    return Checkpoint(folder, progress)


def list_checkpoints(run: Path) -> list[int]:
    """Return the numbers of images of the checkpoints that are there, ascending."""
    names = [path.name for path in (run / "checkpoints").glob("[0-9]*")]
    return sorted(int(name) for name in names if name.isdigit())


def open_checkpoint(run: Path, images: int) -> Checkpoint:
    """Open the checkpoint of that many images and verify its files.

    Raises:
        RunError: it is missing or damaged.
    """
    folder = run / "checkpoints" / f"{images:010d}"
    try:
        state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        progress = Progress(**state["progress"])
        files: Mapping[str, Any] = state["files"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(f"checkpoint {folder} has no readable state.json: {error}") from error
    for name in _FILES:
        path = folder / name
        if not path.is_file() or sha256_of_file(path) != files.get(name, {}).get("sha256"):
            raise RunError(f"checkpoint {folder} is damaged: {name} does not match its SHA-256")
    return Checkpoint(folder, progress)


def newest_checkpoint(run: Path) -> Checkpoint | None:
    """Return the newest valid checkpoint, naming the damaged ones; None where there is none."""
    for images in reversed(list_checkpoints(run)):
        try:
            return open_checkpoint(run, images)
        except RunError as error:
            _LOG.warning("%s; the one before is taken", error)
    return None


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
    if not which.isdigit() or int(which) not in there:
        raise RunError(
            f"checkpoint={which} is not in {run}; it has: "
            f"{', '.join(map(str, there)) or 'none'} (images), or latest"
        )
    return open_checkpoint(run, int(which))


def load_weights(checkpoint: Checkpoint, modules: nn.Module) -> None:
    """Load the networks.

    Raises:
        RunError: the networks have other names or shapes.
    """
    try:
        modules.load_state_dict(load_file(checkpoint.weights))
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise RunError(f"{checkpoint.weights} does not fit this system: {reason}") from error


def load_optimisers(
    checkpoint: Checkpoint,
    parts: Mapping[str, nn.Module],
    optimisers: Mapping[str, torch.optim.Optimizer],
) -> None:
    """Load Adam's moments and step counts."""
    moments = load_file(checkpoint.folder / _FILES[1])
    for part, optimiser in optimisers.items():
        state: dict[Tensor, dict[str, Tensor]] = {}
        for name, parameter in _trainable(parts[part]):
            prefix = f"{part}/{name}/"
            state[parameter] = {
                key.removeprefix(prefix): _placed(key, value, parameter)
                for key, value in moments.items()
                if key.startswith(prefix) and "/" not in key.removeprefix(prefix)
            }
        optimiser.state.update({key: value for key, value in state.items() if value})


def prune_checkpoints(run: Path, keep: int, milestones: int) -> None:
    """Delete all but the newest `keep` checkpoints and one in so many images.

    The first checkpoint that reaches each multiple of `milestones` stays.
    """
    there = list_checkpoints(run)
    kept = set(there[-keep:])
    if milestones:
        kept |= {
            min(n for n in there if n // milestones == k) for k in {n // milestones for n in there}
        }
    for images in there:
        if images not in kept:
            shutil.rmtree(run / "checkpoints" / f"{images:010d}")


def _trainable(part: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return [(name, p) for name, p in part.named_parameters() if p.requires_grad]


def _moments(part: nn.Module, optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    return {
        f"{name}/{key}": value
        for name, parameter in _trainable(part)
        for key, value in optimiser.state.get(parameter, {}).items()
        if isinstance(value, Tensor)
    }


def _placed(key: str, value: Tensor, parameter: Tensor) -> Tensor:
    """Put a moment where and how Adam keeps it; step counts stay on the CPU."""
    return value if key.endswith("/step") else torch.empty_like(parameter).copy_(value)


def _save(path: Path, tensors: Mapping[str, Tensor]) -> None:
    whole = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    save_file(whole, path)
    with path.open("rb+") as stream:
        os.fsync(stream.fileno())
