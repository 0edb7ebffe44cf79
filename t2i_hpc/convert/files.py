"""Files of tensors: the reference's .pth in, safetensors out, and back.

A .pth is a pickle, which can run code; torch's restricted reader takes tensors, plain values and
NumPy's numbers (which trainers save beside them), and that is all that is used here.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from t2i_hpc.common.files import atomic_writer, write_bytes
from t2i_hpc.convert.parts import find_part
from t2i_hpc.convert.shapes import ConversionError

_NUMBER_CODES = "?bBhHiIlLqQefdg"
_DEEPEST = 4  # mappings in mappings
_PARTS = "net"  # what the names of parts begin with where one file holds several


def read_tensors(path: Path, system: str, part: str) -> Mapping[str, Tensor]:
    """Read a state dict from .safetensors or .pth; from a checkpoint of several parts, one.

    Raises:
        ConversionError: no such file, a damaged one, or one that holds more than tensors.
    """
    if not path.is_file():
        raise ConversionError(f"input={path}: there is no such file")
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    return _part_of(_read_pickle(path), path, find_part(system, part).nested)


def write_safetensors(path: Path, tensors: Mapping[str, Tensor], notes: dict[str, str]) -> None:
    """Write tensors atomically, with notes in the file's head."""
    write_bytes(path, save(dict(tensors), metadata={"format": "pt", **notes}))


def write_pickle(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors atomically as the reference implementations read them."""
    with atomic_writer(path) as stream:
        torch.save(dict(tensors), stream)


def _read_safetensors(path: Path) -> Mapping[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise ConversionError(f"input={path} is no whole safetensors file: {error}") from error


def _read_pickle(path: Path) -> Any:
    try:
        with torch.serialization.safe_globals(_numpy_numbers()):
            return torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        raise ConversionError(
            f"input={path} is damaged or holds more than tensors, and is not unpickled because "
            "that could run code: save the state dict alone"
        ) from error
    except Exception as error:  # a damaged file raises whatever its bytes happen to mean
        raise ConversionError(
            f"input={path} is no whole file of torch.save ({type(error).__name__}); "
            "download or copy it again"
        ) from error


def _numpy_numbers() -> list[Any]:
    """Return what rebuilds a NumPy number and does nothing else, by its names in NumPy 1 and 2."""
    scalar, kinds = np.float64(0).__reduce__()[0], [np.dtype(code) for code in _NUMBER_CODES]
    names = ("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar")
    return [*((scalar, name) for name in names), np.dtype, *{type(kind) for kind in kinds}]


def _part_of(loaded: Any, path: Path, nested: str) -> Mapping[str, Tensor]:
    """Take a network out of what a trainer wrapped it in, or the whole where it is one.

    Known are {model: {netG: …}} and a mapping, such as {state_dict: …, epoch: …}, that holds the
    part by its name, or one network alone.
    """
    for _ in range(_DEEPEST):
        if not isinstance(loaded, Mapping) or _is_network(loaded):
            break
        inner = {str(k): value for k, value in loaded.items() if isinstance(value, Mapping)}
        networks = [name for name, value in inner.items() if _is_network(value)]
        by_part = any(name.startswith(_PARTS) for name in inner)
        name = next((known for known in (nested, "model") if known in inner), "")
        if not name and len(networks) == 1 and not by_part:
            name = networks[0]
        if not name:
            break
        loaded = inner[name]
    if not isinstance(loaded, Mapping):
        raise ConversionError(
            f"input={path} holds a {type(loaded).__name__}, not tensors by name; "
            "save the network's state dict"
        )
    if any(isinstance(value, Mapping) for value in loaded.values()):
        raise ConversionError(
            f"input={path} holds {', '.join(map(str, loaded))}, but not "
            f"{nested or 'this part'}: choose another part=, or save its state dict alone"
        )
    return loaded


def _is_network(found: Mapping[Any, Any]) -> bool:
    return bool(found) and all(isinstance(value, Tensor) for value in found.values())
