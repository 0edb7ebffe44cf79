"""The two tables of a split: a row a sample, which locates it in its tar, and a row a tar.

Both are mapped into memory, so opening a split costs the same at any number of samples. Each tar's
rows have a hash in the table of tars, and that table's is in the manifest.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

from t2i_hpc.common.errors import DataError
from t2i_hpc.common.files import sha256_of_file

INDEX = "index.npy"
SHARDS = "shards.npy"
REBUILD = "copy the split again or build it with t2i_hpc.shards"
ROW = np.dtype(
    [
        ("image_offset", "<u8"),
        ("json_offset", "<u8"),
        ("checksum", "<u8"),  # of both files
        ("image_bytes", "<u4"),
        ("json_bytes", "<u4"),
        ("image_format", "u1"),
    ]
)
SHARD_ROW = np.dtype(
    [
        ("first", "<u8"),
        ("bytes", "<u8"),
        ("count", "<u4"),
        ("sha256", "u1", (32,)),
        ("rows_sha256", "u1", (32,)),
    ]
)
Index = npt.NDArray[np.void]
Numbers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Shard:
    """One tar: its number in the split, samples, bytes, SHA-256 of it and of its index rows."""

    number: int
    count: int
    bytes: int
    sha256: str
    rows_sha256: str

    @classmethod
    def of_row(cls, number: int, row: np.void) -> Shard:
        """Return a shard from its row, :data:`SHARD_ROW`."""
        hashes = row["sha256"].tobytes().hex(), row["rows_sha256"].tobytes().hex()
        return cls(number, int(row["count"]), int(row["bytes"]), *hashes)

    @property
    def name(self) -> str:
        """The file's name."""
        return shard_name(self.number)


def shard_name(number: int) -> str:
    """Return the file name of a shard."""
    return f"{number:06d}.tar"


def checksum(image: bytes, text: bytes) -> int:
    """Return what an index row keeps of a sample's two files: 64 bits of XXH3.

    It takes a microsecond, so every read is compared with it; the tar's SHA-256 guards against
    more than accidents.
    """
    return xxhash.xxh3_64_intdigest(text, seed=xxhash.xxh3_64_intdigest(image))


def map_table(path: Path, kind: np.dtype[Any], rows: int) -> Index:
    """Return a table, memory-mapped and read-only.

    Raises:
        DataError: it is missing, damaged or of another size.
    """
    try:
        found: Index = np.lib.format.open_memmap(path, "r")
    except Exception as error:  # numpy raises anything on damaged headers
        raise DataError(f"{path} cannot be read ({error}); {REBUILD}") from error
    if found.dtype != kind or found.shape != (rows,):
        raise DataError(
            f"{path} has {found.shape} rows of {found.dtype} instead of {rows:,} of {kind}; "
            f"{REBUILD}"
        )
    return found


def sha256_of_rows(rows: Index) -> str:
    """Return the hash of some rows of the index."""
    return hashlib.sha256(np.ascontiguousarray(rows).tobytes()).hexdigest()


def save_tables(folder: Path, shards: Sequence[Shard], rows: Iterable[Index]) -> str:
    """Write both tables of a split; return the SHA-256 of that of the shards.

    Args:
        folder: where to write.
        shards: all of them, in order.
        rows: the index rows of each; taken one after the other, so they need not be in memory.
    """
    table = np.zeros(len(shards), dtype=SHARD_ROW)
    table["count"] = [shard.count for shard in shards]
    table["bytes"] = [shard.bytes for shard in shards]
    table["first"][1:] = np.cumsum(table["count"][:-1], dtype=np.uint64)
    for name in ("sha256", "rows_sha256"):
        hashes = b"".join(bytes.fromhex(getattr(shard, name)) for shard in shards)
        table[name] = np.frombuffer(hashes, np.uint8).reshape(-1, 32)
    with (folder / SHARDS).open("wb") as stream:
        np.save(stream, table, allow_pickle=False)
        stream.flush()
        os.fsync(stream.fileno())
    total = sum(shard.count for shard in shards)
    index = np.lib.format.open_memmap(folder / INDEX, "w+", ROW, (total,))
    for shard, first, own in zip(shards, table["first"].tolist(), rows, strict=True):
        index[first : first + shard.count] = own
    index.flush()
    return sha256_of_file(folder / SHARDS)
