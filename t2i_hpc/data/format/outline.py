"""The outline of a split of many shards: what its order takes, and hashes of blocks of its table.

The table of 10⁶ shards has 84 MB and one hash, so it must be read whole before a row counts. The
outline has the samples of every shard, which the order is made of, and a hash of every 256 rows:
a reader on a server's other side fetches it and then the few blocks that it needs. The manifest
vouches for the outline's content, not for the bytes of its file, which depend on the compressor.

Splits of up to 4,096 shards have none: their table has 344 kB.
"""

from __future__ import annotations

import hashlib
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from t2i_hpc.common.files import write_bytes

OUTLINE = "outline.bin"
MOST = 4096  # shards of a split without an outline
ROWS = 256  # of a block
_HASH = 32  # bytes


@dataclass(frozen=True)
class Outline:
    """What is known of all shards at once.

    Attributes:
        counts: samples of each shard, int64 (shards,).
        largest: bytes of the largest shard.
        blocks: SHA-256 of each 256 rows of the table of shards, the last ones may be fewer.
    """

    counts: npt.NDArray[np.int64]
    largest: int
    blocks: list[str]

    @classmethod
    def of(cls, table: npt.NDArray[Any]) -> Outline:
        """Return the outline of a table of shards."""
        blocks = [
            hashlib.sha256(np.ascontiguousarray(table[first : first + ROWS]).tobytes()).hexdigest()
            for first in range(0, len(table), ROWS)
        ]
        return cls(table["count"].astype(np.int64), int(table["bytes"].max()), blocks)

    def save(self, folder: Path) -> str:
        """Write it into a split's folder; return the SHA-256 of its content."""
        content = self.counts.astype("<u4").tobytes() + self.largest.to_bytes(8, "little")
        content += bytes.fromhex("".join(self.blocks))
        write_bytes(folder / OUTLINE, zlib.compress(content, 9))
        return hashlib.sha256(content).hexdigest()

    @classmethod
    def load(cls, path: Path, shards: int, sha256: str) -> Outline:
        """Read an outline.

        Raises:
            ValueError: it is not that of the manifest.
        """
        counts, blocks = 4 * shards, -(-shards // ROWS) * _HASH
        unpacker = zlib.decompressobj()
        try:
            content = unpacker.decompress(path.read_bytes(), counts + 8 + blocks + 1)
        except zlib.error as error:
            raise ValueError(f"it cannot be unpacked: {error}") from error
        if hashlib.sha256(content).hexdigest() != sha256:
            raise ValueError("its SHA-256 differs")
        hashes = content[counts + 8 :].hex()
        return cls(
            np.frombuffer(content, "<u4", shards).astype(np.int64),
            int.from_bytes(content[counts : counts + 8], "little"),
            [hashes[first : first + 2 * _HASH] for first in range(0, len(hashes), 2 * _HASH)],
        )
