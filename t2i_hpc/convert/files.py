"""Files of tensors: the reference's .pth in, safetensors out, and back.

A .pth is a pickle, which can run code; torch's restricted reader takes tensors and nothing
else, and that is all that is used here.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from t2i_hpc.common.files import atomic_writer, write_bytes
from t2i_hpc.convert.parts import find_part
from t2i_hpc.convert.shapes import ConversionError


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


def _part_of(loaded: Any, path: Path, nested: str) -> Mapping[str, Tensor]:
    """Take a part out of a checkpoint {model: {netG: …}}, or the whole where it is one."""
    if isinstance(loaded, Mapping) and isinstance(loaded.get("model"), Mapping):
        loaded = loaded["model"]
        if nested not in loaded:
            raise ConversionError(
                f"input={path} holds {', '.join(map(str, loaded))}, but not "
                f"{nested or 'this part'}: choose another part="
            )
        loaded = loaded[nested]
    if not isinstance(loaded, Mapping):
        raise ConversionError(
            f"input={path} holds a {type(loaded).__name__}, not tensors by name; "
            "save the network's state dict"
        )
    return loaded
