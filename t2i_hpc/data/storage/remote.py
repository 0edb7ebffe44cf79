"""Shards of a server, each copied whole to the node when its first sample is wanted.

Shards that are read where they are, sample by sample: nothing is kept on the node.

Manifest, tables and vocabulary of a split on a server, fetched to the node.

The manifest is fetched at every start, so what changed on the server is noticed; the tables
are kept under the manifest's hash, which vouches for them, and fetched once a node. They are
not counted in the cache's limit, since workers map them at any time.

The storage that fits where a split lies and what the configuration asks for.
"""

from __future__ import annotations

import hashlib
import io
import logging
import os
import shutil
from pathlib import Path
from typing import IO

import numpy as np

from t2i_hpc.common.errors import ConfigurationError, DataError
from t2i_hpc.common.files import fsync_folder, size_text, write_bytes
from t2i_hpc.config.data import DataConfig
from t2i_hpc.data.captions import Vocabulary
from t2i_hpc.data.format.index import INDEX, REBUILD, SHARDS, Shard, shard_name
from t2i_hpc.data.format.manifest import MANIFEST, VOCABULARY, Manifest
from t2i_hpc.data.storage.cache import Beat, Cache
from t2i_hpc.data.storage.local import (
    ADVICE,
    OPEN_FILES,
    LocalStorage,
    Storage,
    is_final,
    read_whole,
)
from t2i_hpc.data.storage.retry import RetryPolicy
from t2i_hpc.data.storage.server import BLOCK, Server
from t2i_hpc.data.storage.urls import is_remote, join, shown


class CachedStorage:
    """Reads of copies; a copy whose bytes are not those of the manifest is never kept.

    A copy is open for the time of a read alone (opening takes microseconds on a node's disk):
    bytes of a deleted file stay on the disk for as long as somebody has it open.
    """

    def __init__(self, manifest: Manifest, server: Server, cache: Cache) -> None:
        self._manifest, self._server, self._cache = manifest, server, cache
        self._latest: tuple[int, os.stat_result] | None = None  # shard and copy read last

    @property
    def patience(self) -> RetryPolicy:
        """How long reads that fail are tried again."""
        return self._server.patience

    def read(self, shard: int, offset: int, count: int) -> bytes:
        """Return exactly `count` bytes of a shard."""
        return self._server.patience.attempt(
            self.name_of(shard),
            lambda _: self._read_once(shard, offset, count),
            ADVICE,
            is_final,
        )

    def forget(self, shard: int) -> None:
        """Remove the copy of a shard that was read last, so that it is fetched again."""
        if self._latest and self._latest[0] == shard:
            self._cache.drop(_copy_of(self._manifest.shard(shard)), self._latest[1])

    def name_of(self, shard: int) -> str:
        """Return the address of a shard, without secrets."""
        return shown(self._address(shard))

    def _address(self, shard: int) -> str:
        return join(self._manifest.location, shard_name(shard))

    def _read_once(self, number: int, offset: int, count: int) -> bytes:
        shard = self._manifest.shard(number)

        def fetch(stream: IO[bytes], beat: Beat) -> None:
            self._fetch(shard, stream, beat)

        descriptor = self._cache.open(_copy_of(shard), shard.bytes, fetch)
        try:
            self._latest = number, os.fstat(descriptor)
            return read_whole(descriptor, offset, count)
        finally:
            os.close(descriptor)

    def _fetch(self, shard: Shard, stream: IO[bytes], beat: Beat) -> None:
        """Write a shard, twice if the first copy is damaged."""
        name = self.name_of(shard.number)
        for _ in range(2):
            stream.seek(0)
            if self._copy(shard, stream, beat) == shard.sha256:
                return
            logging.getLogger(__name__).warning("%s arrived with another SHA-256", name)
        raise DataError(
            f"{name} has changed since the manifest was written (its SHA-256 differs, fetched "
            f"twice); {REBUILD}"
        )

    def _copy(self, shard: Shard, stream: IO[bytes], beat: Beat) -> str:
        """Write a shard and return the SHA-256 of what was written."""
        digest, done = hashlib.sha256(), 0
        while done < shard.bytes:
            left = shard.bytes - done
            content = self._server.read_on(self._address(shard.number), done, min(BLOCK, left))
            content = content[:left]
            stream.write(content)
            digest.update(content)
            done += len(content)
            beat()
        return digest.hexdigest()


def _copy_of(shard: Shard) -> str:
    return f"{shard.sha256}.tar"


class RangedStorage:
    """One request a sample."""

    def __init__(self, manifest: Manifest, server: Server) -> None:
        self._manifest, self._server = manifest, server

    @property
    def patience(self) -> RetryPolicy:
        """How long reads that fail are tried again."""
        return self._server.patience

    def read(self, shard: int, offset: int, count: int) -> bytes:
        """Return exactly `count` bytes of a shard."""
        return self._server.read(self._address(shard), offset, count)

    def forget(self, shard: int) -> None:
        """Nothing is kept."""

    def name_of(self, shard: int) -> str:
        """Return the address of a shard, without secrets."""
        return shown(self._address(shard))

    def _address(self, shard: int) -> str:
        return join(self._manifest.location, shard_name(shard))


def fetch_manifest(address: str, server: Server, cache: Cache) -> Manifest:
    """Return the manifest of the split at `address`, its tables compared and kept on the node.

    Raises:
        DataError: it cannot be had or is damaged.
    """
    content = server.json(join(address, MANIFEST))
    digest = hashlib.sha256(content).hexdigest()
    folder = cache.folder / "tables" / digest
    with cache.locked(digest) as beat:
        if (kept := _kept(folder, address)) is not None:
            return kept
        shutil.rmtree(folder, ignore_errors=True)
        for last in (False, True):
            try:
                _fetch_tables(address, content, folder, server, beat)
                break
            except DataError as error:
                if last:
                    raise DataError(f"the split {shown(address)} is damaged: {error}") from error
    return Manifest.load(folder, address)


def fetch_vocabulary(address: str, server: Server, cache: Cache) -> Vocabulary:
    """Return the vocabulary of the data set at `address`.

    Raises:
        DataError: it cannot be had or is damaged.
    """
    content = server.json(join(address, VOCABULARY))
    path = cache.folder / "tables" / f"{hashlib.sha256(content).hexdigest()}.json"
    write_bytes(path, content)
    return Vocabulary.load(path)


def _kept(folder: Path, address: str) -> Manifest | None:
    """Return the manifest whose tables are here, None if they are not or are damaged."""
    try:
        return Manifest.load(folder, address)
    except DataError:
        return None


def _fetch_tables(address: str, content: bytes, folder: Path, server: Server, beat: Beat) -> None:
    """Fetch both tables beside the manifest and compare every row before they count."""
    part = folder.with_suffix(".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    try:
        write_bytes(part / MANIFEST, content)
        for name in (SHARDS, INDEX):
            _fetch_table(join(address, name), part / name, server, beat)
        manifest = Manifest.load(part, address)
        for number in range(manifest.shard_count):
            manifest.rows(number)
        fsync_folder(part)
        part.replace(folder)
        fsync_folder(folder.parent)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _fetch_table(address: str, path: Path, server: Server, beat: Beat) -> None:
    """Fetch a table, whose first bytes say how long it is."""
    content = server.head(address, BLOCK)
    size = _table_bytes(content, address)
    done = 0
    with path.open("wb") as stream:
        while True:
            stream.write(content[: size - done])
            done += len(content)
            beat()
            if done >= size:
                break
            content = server.read_on(address, done, min(BLOCK, size - done))
        stream.flush()
        os.fsync(stream.fileno())


def _table_bytes(head: bytes, address: str) -> int:
    """Return the length of an .npy file from its first bytes."""
    stream = io.BytesIO(head)
    try:
        version = np.lib.format.read_magic(stream)
        read = np.lib.format.read_array_header_1_0
        if version != (1, 0):
            read = np.lib.format.read_array_header_2_0
        shape, _, kind = read(stream)
    except Exception as error:  # NumPy's parser raises anything on damaged bytes
        raise DataError(f"{shown(address)} is no table ({error}); build the split again") from error
    return stream.tell() + int(np.prod(shape, dtype=np.int64)) * kind.itemsize


def open_storage(manifest: Manifest, config: DataConfig) -> Storage:
    """Return the storage of a split's shards.

    Raises:
        ConfigurationError: the cache is too small for a single shard.
        DataError: the cache's folder cannot be used.
    """
    if not is_remote(manifest.location, "data.path"):
        return LocalStorage(manifest, config.retry_seconds, shards_kept(config.shuffle_window))
    server = Server(config.retry_seconds)
    if config.remote_reads == "ranges":
        return RangedStorage(manifest, server)
    cache = open_cache(config)
    _check_room(manifest, config, cache)
    return CachedStorage(manifest, server, cache)


def shards_kept(window: int) -> int:
    """Return of how many shards rows and descriptors are kept: windows overlap at their seams."""
    return max(OPEN_FILES, 2 * window)


def open_cache(config: DataConfig) -> Cache:
    """Return the node's cache.

    Raises:
        DataError: its folder cannot be used.
    """
    return Cache(config.cache, int(config.cache_gigabytes * 1e9), config.retry_seconds)


def _check_room(manifest: Manifest, config: DataConfig, cache: Cache) -> None:
    largest = int(manifest.table["bytes"].max())
    if largest > cache.limit:
        raise ConfigurationError(
            f"data.cache_gigabytes={config.cache_gigabytes:g} is less than a shard of "
            f"{size_text(largest)}: raise it or take data.remote_reads=ranges"
        )
    window = min(config.shuffle_window, manifest.shard_count) * largest
    room = cache.room()
    if window > cache.limit:
        small, more = f"data.cache_gigabytes={config.cache_gigabytes:g} holds", "raise it"
    elif window > room:
        small = f"the disk of {cache.folder} has room for {size_text(room)} of shards, which is"
        more = "name a folder on a larger one with data.cache="
    else:
        return
    logging.getLogger(__name__).warning(
        "%s less than the %d shards that are shuffled together (%s): shards will be fetched again "
        "and again; %s, lower data.shuffle_window or take data.remote_reads=ranges",
        small,
        min(config.shuffle_window, manifest.shard_count),
        size_text(window),
        more,
    )
