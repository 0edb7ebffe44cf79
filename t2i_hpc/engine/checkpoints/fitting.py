"""Whether a checkpoint's tensors are those of a system, looked at before any is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from t2i_hpc.common.errors import RunError
from t2i_hpc.common.step import System
from t2i_hpc.engine.engines.optimisers import MOMENTS, trainable

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
    """Compare the optimisers' state; a part has all of its own, or none before its first step.

    Raises:
        RunError: names the file and the first tensor that does not fit.
    """
    wanted: dict[str, Tensor] = {}
    for name in system.parts:
        if any(key.startswith(f"{name}/") for key in found):
            wanted |= _moments_of(name, system)
    for key in found:
        if key.startswith(_SCALER):
            wanted[key] = torch.empty(2)
    check_fit(path, found, wanted)


def _moments_of(name: str, system: System) -> dict[str, Tensor]:
    wanted: dict[str, Tensor] = {}
    for key, parameter in trainable(system.parts[name]):
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
