"""One safetensors file: written to the disk, and read, in a sentence where it cannot be."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from t2i_hpc.common.errors import RunError
from t2i_hpc.common.files import sha256_of_file


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
