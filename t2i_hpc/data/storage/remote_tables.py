"""The tables of a split on a server, of which only what is needed is fetched.

The manifest is fetched at every start, so what changed on the server is noticed. The table of
shards (or, of many shards, its outline) is kept on the node under the manifest's hash, which
vouches for it, and fetched once a node, and so is a small index. Rows of a larger one, 33 GB for
10⁹ samples, come shard by shard, in one range each, when the shard is first used; so do blocks of
the table of many shards.
They lie beside the copies of shards, count against the cache's limit and are evicted like them.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import IO, Any

import numpy as np

from t2i_hpc.common.errors import DataError
from t2i_hpc.common.files import fsync_folder, write_bytes
from t2i_hpc.data.captions import Vocabulary
from t2i_hpc.data.format.manifest import IN_PLACE, MANIFEST, VOCABULARY, Manifest
from t2i_hpc.data.format.outline import OUTLINE, ROWS, Outline
from t2i_hpc.data.format.tables import (
    INDEX,
    REBUILD,
    ROW,
    SHARD_ROW,
    SHARDS,
    Index,
    Numbers,
    Shard,
    map_table,
)
from t2i_hpc.data.storage.cache import Cache, Fetch, Heartbeat
from t2i_hpc.data.storage.fetching import BLOCK, Server, join
from t2i_hpc.data.storage.local_shards import read_whole
from t2i_hpc.data.storage.retry import shown

WHOLE = 256 << 10  # bytes of an index that is fetched in one range; of a larger one the header
_HEADER = 256  # bytes: NumPy's of a table has 128, or 192
_LARGEST_OUTLINE = 1 << 30  # bytes
_ABOVE = "data.path= is the address of the folder above the split, where vocabulary.json lies: "
_BLOCKS_KEPT = 64  # of the table of shards, 20 kB each


@dataclass(frozen=True)
class RemoteManifest(Manifest):
    """The manifest of a split on a server.

    Attributes:
        origin: reads what is missing.
        node: keeps it.
    """

    origin: Server | None = None
    node: Cache | None = None

    @cached_property
    def _in_blocks(self) -> bool:
        """Whether the table of shards is fetched in blocks: it is large, and known by outline."""
        return bool(self.outline) and not (self.folder / SHARDS).exists()

    @cached_property
    def counts(self) -> Numbers:
        """Number of samples of each shard, int64 (shards,)."""
        return (
            self._outline.counts if self._in_blocks else np.asarray(self.table["count"], np.int64)
        )

    @cached_property
    def first(self) -> Numbers:
        """Samples before each shard, int64 (shards,)."""
        return np.cumsum(self.counts) - self.counts

    @property
    def largest(self) -> int:
        """Bytes of the largest shard."""
        return self._outline.largest if self._in_blocks else super().largest

    def shard(self, number: int) -> Shard:
        """Return the row of a shard.

        Raises:
            DataError: it cannot be had or is damaged.
        """
        if not self._in_blocks:
            return super().shard(number)
        row = self._block(number // ROWS)[number % ROWS]
        return Shard.of_row(number, row)

    def knows(self, number: int) -> bool:
        """Whether the row of a shard can be read without asking the server."""
        return not self._in_blocks or number // ROWS in self._blocks

    @cached_property
    def _outline(self) -> Outline:
        path = self.folder / OUTLINE
        try:
            return Outline.load(path, self.shard_count, self.outline)
        except (OSError, ValueError) as error:
            raise DataError(
                f"{path} is not the outline of this manifest ({error}); {REBUILD}"
            ) from error

    @cached_property
    def _blocks(self) -> dict[int, Index]:
        return {}

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what another process reads itself."""
        state = super().__getstate__()
        return {name: value for name, value in state.items() if name not in ("_outline", "_blocks")}

    def _block(self, number: int) -> Index:
        """Return a block of the table of shards."""
        block = self._blocks.get(number)
        if block is None:
            rows = min(ROWS, self.shard_count - number * ROWS)
            start = self._begin_of_shards + number * ROWS * SHARD_ROW.itemsize
            sha256 = self._outline.blocks[number]
            content = self._range(SHARDS, start, rows * SHARD_ROW.itemsize, sha256)
            block = np.frombuffer(content, SHARD_ROW)
            if (block["count"] != self.counts[number * ROWS : number * ROWS + rows]).any():
                raise DataError(f"{OUTLINE} and {SHARDS} contradict each other; {REBUILD}")
            if len(self._blocks) >= _BLOCKS_KEPT:
                self._blocks.clear()
            self._blocks[number] = block
        return block

    @cached_property
    def _begin_of_shards(self) -> int:
        return _first_row(self.folder / f"{SHARDS}.head", SHARD_ROW, self.shard_count)

    @cached_property
    def _begin_of_index(self) -> int:
        return _first_row(self.folder / f"{INDEX}.head", ROW, self.sample_count)

    def has_rows(self, number: int) -> bool:
        """Whether the node has the rows of a shard."""
        assert self.node is not None
        if self._has_index:
            return True
        return self.node.has(rows_copy(self.shard(number)), self._place_of_rows(number)[1])

    def bring_rows(self, number: int, need: int) -> bool:
        """Fetch the rows of a shard before they are needed; see :meth:`Cache.bring`.

        Raises:
            DataError: they cannot be had, or are others than their hash vouches for.
        """
        assert self.node is not None
        if self._has_index:
            return True
        sha256, (start, count) = self.shard(number).rows_sha256, self._place_of_rows(number)
        fetch = self._fetch_of(INDEX, start, count, sha256)
        return self.node.bring(_rows_name(sha256), count, fetch, need)

    @property
    def _has_index(self) -> bool:
        """Whether the index is here: it is small, or the server knows no ranges."""
        return (self.folder / INDEX).exists()

    def _stored_rows(self, number: int) -> Index:
        if self._has_index:
            return super()._stored_rows(number)
        start, count = self._place_of_rows(number)
        return np.frombuffer(self._range(INDEX, start, count, self.shard(number).rows_sha256), ROW)

    def _place_of_rows(self, number: int) -> tuple[int, int]:
        """Return where the rows of a shard begin in the index, and their bytes."""
        start = self._begin_of_index + int(self.first[number]) * ROW.itemsize
        return start, int(self.counts[number]) * ROW.itemsize

    def _fetch_of(self, table: str, start: int, count: int, sha256: str) -> Fetch:
        """Return what writes some rows of a table, compared with their hash."""
        assert self.origin is not None
        origin, address = self.origin, join(self.location, table)

        def fetch(stream: IO[bytes], heartbeat: Heartbeat) -> None:
            for _ in range(2):
                content = origin.read(address, start, count)
                if hashlib.sha256(content).hexdigest() == sha256:
                    stream.write(content)
                    return
            raise DataError(
                f"the split {shown(self.location)} is damaged: rows of {table} are not those of "
                f"its manifest (SHA-256 differs, fetched twice); {REBUILD}"
            )

        return fetch

    def _range(self, table: str, start: int, count: int, sha256: str) -> bytes:
        """Return some rows of a table, which the node keeps from then on.

        Raises:
            DataError: they cannot be had, or are others than their hash vouches for.
        """
        assert self.node is not None
        name, fetch = _rows_name(sha256), self._fetch_of(table, start, count, sha256)
        while True:
            descriptor = self.node.open(name, count, fetch)
            try:
                content, found = read_whole(descriptor, 0, count), os.fstat(descriptor)
            finally:
                os.close(descriptor)
            if hashlib.sha256(content).hexdigest() == sha256:
                return content
            self.node.drop(name, found)  # it rotted here

    def _check_tables(self) -> None:
        if not self._in_blocks:
            self._check_shards()
        elif int(self._outline.counts.sum()) != self.sample_count or self._begin_of_shards < 0:
            raise DataError(f"{OUTLINE} contradicts {MANIFEST} in samples; {REBUILD}")
        index = self.folder / INDEX
        if index.exists():
            map_table(index, ROW, self.sample_count)
        else:
            _first_row(index.with_name(f"{INDEX}.head"), ROW, self.sample_count)


def rows_copy(shard: Shard) -> str:
    """Return the name of the copy of a shard's rows."""
    return _rows_name(shard.rows_sha256)


def _rows_name(sha256: str) -> str:
    return f"{sha256}.rows"


# --- fetching


def fetch_manifest(address: str, server: Server, cache: Cache) -> Manifest:
    """Return the manifest of the split at `address`, its tables compared and kept on the node.

    Raises:
        DataError: it cannot be had or is damaged.
    """
    content = server.json(join(address, MANIFEST), _ABOVE)
    if json.loads(content).get("format") == IN_PLACE:
        raise DataError(
            f"{shown(address)} is an index of tars where they lie, which is read from a folder: "
            "copy it here, its tars may stay on their server"
        )
    digest = hashlib.sha256(content).hexdigest()
    folder = cache.folder / "tables" / digest
    with cache.locked(digest) as heartbeat:
        kept = _kept(folder, address)
        for last in (False, True):
            if kept is not None:
                break
            shutil.rmtree(folder, ignore_errors=True)
            try:
                kept = _fetch_tables(address, content, folder, server, heartbeat)
            except DataError as error:
                if last:
                    raise DataError(f"the split {shown(address)} is damaged: {error}") from error
    assert kept is not None
    return replace(kept, origin=server, node=cache)


def fetch_vocabulary(address: str, server: Server, cache: Cache) -> Vocabulary:
    """Return the vocabulary of the data set at `address`.

    Raises:
        DataError: it cannot be had or is damaged.
    """
    content = server.json(join(address, VOCABULARY))
    path = cache.folder / "tables" / f"{hashlib.sha256(content).hexdigest()}.json"
    write_bytes(path, content)
    return Vocabulary.load(path)


def _kept(folder: Path, address: str) -> RemoteManifest | None:
    """Return the manifest whose tables are here, None if they are not or are damaged."""
    try:
        return _load(folder, address)
    except (DataError, OSError):
        return None


def _fetch_tables(
    address: str, content: bytes, folder: Path, server: Server, heartbeat: Heartbeat
) -> RemoteManifest:
    """Fetch the tables, or their beginnings, beside the manifest; compare what has come."""
    part = folder.with_suffix(".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    try:
        write_bytes(part / MANIFEST, content)
        if b'"outline"' in content:
            write_bytes(part / OUTLINE, server.head(join(address, OUTLINE), _LARGEST_OUTLINE))
            _fetch_beginning(join(address, SHARDS), part / SHARDS, server)
        else:
            _fetch_table(join(address, SHARDS), part / SHARDS, server, heartbeat)
        heartbeat()
        _fetch_beginning(join(address, INDEX), part / INDEX, server)
        manifest = _load(part, address)
        if (part / INDEX).exists():  # nothing compares it as it comes
            for number in range(manifest.shard_count):
                manifest.rows(number)
        fsync_folder(part)
        part.replace(folder)
        fsync_folder(folder.parent)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return _load(folder, address)


def _load(folder: Path, address: str) -> RemoteManifest:
    manifest = RemoteManifest.load(folder, address)
    assert isinstance(manifest, RemoteManifest)
    return manifest


def _fetch_beginning(address: str, path: Path, server: Server) -> None:
    """Fetch a table's header; all of it where it is small or the server knows no ranges."""
    content = server.head(address, WHOLE)
    whole = sum(_read_header(content, shown(address))[::2])
    if len(content) >= whole:
        write_bytes(path, content[:whole])
    else:
        write_bytes(path.with_name(f"{path.name}.head"), content[:_HEADER])


def _fetch_table(address: str, path: Path, server: Server, heartbeat: Heartbeat) -> None:
    """Fetch a table, whose first bytes give its length."""
    content = server.head(address, BLOCK)
    size = sum(_read_header(content, shown(address))[::2])
    done = 0
    with path.open("wb") as stream:
        while True:
            stream.write(content[: size - done])
            done += len(content)
            heartbeat()
            if done >= size:
                break
            content = server.read_on(address, done, min(BLOCK, size - done))
        stream.flush()
        os.fsync(stream.fileno())


def _first_row(path: Path, kind: np.dtype[Any], rows: int) -> int:
    """Return how many bytes are before the first row of a table, from its beginning."""
    begin, found, _ = _read_header(path.read_bytes(), str(path))
    if found != (kind, (rows,)) or begin % 64:
        raise DataError(f"{path} has not one row each; {REBUILD}")
    return begin


def _read_header(head: bytes, name: str) -> tuple[int, tuple[np.dtype[Any], tuple[int, ...]], int]:
    """Return length, type and shape, and bytes of the rows of an .npy file."""
    stream = io.BytesIO(head)
    try:
        version = np.lib.format.read_magic(stream)
        read = np.lib.format.read_array_header_1_0
        if version != (1, 0):
            read = np.lib.format.read_array_header_2_0
        shape, _, kind = read(stream)
    except Exception as error:  # NumPy's parser raises anything on damaged bytes
        raise DataError(f"{name} is no table ({error}); build the split again") from error
    return stream.tell(), (kind, shape), int(np.prod(shape, dtype=np.int64)) * kind.itemsize
