"""Features by image number on the disk, memory-mapped: what KID and precision/recall read.

Rows are written next to a part's sums, before them, so that sums which are there vouch for
their rows. The merge copies the parts' rows into one file, a block at a time.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import IO

import numpy as np
from torch import Tensor

from t2i_hpc.common.errors import EvaluationError
from t2i_hpc.common.files import atomic_writer, sha256_of_file
from t2i_hpc.evaluation.kid import Rows
from t2i_hpc.evaluation.partial_statistics import Header, load_header, rows_path

_BLOCK_ROWS = 4096


def write_rows(path: Path, blocks: Iterable[Rows], count: int, width: int, dtype: str) -> str:
    """Write features (count, width) atomically, given in blocks of rows; return their SHA-256."""
    with atomic_writer(path) as stream:
        _write_head(stream, (count, width), dtype)
        for block in blocks:
            stream.write(np.ascontiguousarray(block, dtype).tobytes())
    return sha256_of_file(path)


def read_rows(path: Path, dtype: str) -> Rows:
    """Map the features of the part whose sums lie at `path`: float (N, D), read-only.

    Raises:
        EvaluationError: they are missing or damaged.
    """
    try:
        rows: Rows = np.load(rows_path(path, dtype), mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise EvaluationError(
            f"{rows_path(path, dtype)} cannot be read ({error}): delete {path.name} and compute "
            "it again"
        ) from error
    return rows


def rows_are_whole(path: Path, header: Header, dtype: str) -> bool:
    """Whether the features beside a part's sums are those that the sums were made with."""
    there, recorded = rows_path(path, dtype), header.rows.get(dtype)
    return bool(recorded) and there.is_file() and sha256_of_file(there) == recorded


def merge_rows(parts: Sequence[Path], whole: Path, dtype: str) -> str:
    """Write the features of `parts`, in the order given, beside `whole`; return their SHA-256.

    Raises:
        EvaluationError: a part's features are missing or damaged.
    """
    for path in parts:
        if not rows_are_whole(path, load_header(path), dtype):
            raise EvaluationError(
                f"{rows_path(path, dtype)} is missing or damaged: delete {path.name} and compute "
                "it again"
            )
    mapped = [read_rows(path, dtype) for path in parts]
    blocks = (
        rows[start : start + _BLOCK_ROWS]
        for rows in mapped
        for start in range(0, len(rows), _BLOCK_ROWS)
    )
    count, width = sum(map(len, mapped)), mapped[0].shape[1]
    return write_rows(rows_path(whole, dtype), blocks, count, width, dtype)


class KeptRows:
    """The features of a part while it is computed, in memory as they will be stored."""

    def __init__(self, dtype: str) -> None:
        self._dtype = dtype
        self._blocks: list[Rows] = []

    def add(self, features: Tensor) -> None:
        """Keep the features of a batch, float32 (n, D)."""
        self._blocks.append(features.cpu().numpy().astype(self._dtype))

    def save(self, path: Path, width: int) -> str:
        """Write them beside the part's sums; return their SHA-256."""
        count = sum(map(len, self._blocks))
        return write_rows(rows_path(path, self._dtype), self._blocks, count, width, self._dtype)


def _write_head(stream: IO[bytes], shape: tuple[int, int], dtype: str) -> None:
    head = {"descr": np.dtype(dtype).str, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(stream, head)
