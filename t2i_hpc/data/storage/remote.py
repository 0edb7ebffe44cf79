"""Shards on a server: copies of whole shards on the node, or a range request for each sample."""

from __future__ import annotations

import logging
import os
from functools import partial
from typing import IO

from t2i_hpc.common.errors import DataError
from t2i_hpc.data.format.manifest import Manifest
from t2i_hpc.data.format.sums import CHECKSUMS, new_sum
from t2i_hpc.data.format.tables import REBUILD, Shard, shard_name
from t2i_hpc.data.storage.cache import Cache, Heartbeat
from t2i_hpc.data.storage.fetching import Server, join
from t2i_hpc.data.storage.local_shards import (
    ADVICE,
    Reads,
    is_permanent_here,
    read_whole,
)
from t2i_hpc.data.storage.remote_tables import RemoteManifest, rows_copy
from t2i_hpc.data.storage.retry import shown


class RangedStorage:
    """One request a sample; nothing is kept on the node."""

    looks_ahead = False

    def __init__(self, manifest: Manifest, server: Server) -> None:
        self._manifest, self._server, self.retry = manifest, server, server.retry
        self.reads = Reads()

    def read(self, shard: int, offset: int, count: int) -> bytes:
        """Return exactly `count` bytes of a shard."""
        self.reads.bytes += count
        return self._server.read(self._address(shard), offset, count)

    def forget(self, shard: int) -> None:
        """Nothing is kept."""

    def name_of(self, shard: int) -> str:
        """Return the address of a shard, without secrets."""
        return shown(self._address(shard))

    def knows(self, shard: int) -> bool:
        """Nothing is to be known."""
        return False

    def copies_of(self, shard: int) -> tuple[tuple[str, ...], int]:
        """Nothing is kept."""
        return (), 0

    def is_here(self, shard: int) -> bool:
        """Nothing is ever brought."""
        return True

    def passed(self, shard: int) -> None:
        """Nothing was brought."""

    def bring(self, shard: int, need: int) -> bool:
        """Nothing is brought."""
        return True

    def _address(self, shard: int) -> str:
        if self._manifest.in_place:
            return self._manifest.tars[shard]
        return join(self._manifest.location, shard_name(shard))


class CachedStorage(RangedStorage):
    """Reads from copies of whole shards; a copy that does not match its hash is never kept.

    A copy is open only during a read (opening takes microseconds on a node's disk): bytes of a
    deleted file stay on the disk for as long as some process has it open.
    """

    looks_ahead = True

    def __init__(self, manifest: Manifest, server: Server, cache: Cache) -> None:
        super().__init__(manifest, server)
        self._cache = cache
        self._latest: tuple[int, os.stat_result] | None = None  # shard and copy read last

    def read(self, shard: int, offset: int, count: int) -> bytes:
        """Return exactly `count` bytes of a shard."""
        return self.retry.attempt(
            self.name_of(shard),
            lambda _: self._read_once(shard, offset, count),
            ADVICE,
            is_permanent_here,
        )

    def forget(self, shard: int) -> None:
        """Remove the copy of a shard that was read last, so that it is fetched again."""
        if self._latest and self._latest[0] == shard:
            self._cache.drop(self.copies_of(shard)[0][0], self._latest[1])

    def knows(self, shard: int) -> bool:
        """Whether no request is needed to tell a shard's copies."""
        manifest = self._manifest
        return not isinstance(manifest, RemoteManifest) or manifest.knows(shard)

    def copies_of(self, shard: int) -> tuple[tuple[str, ...], int]:
        """Return the names of a shard's copy and of that of its rows, and bytes."""
        row = self._manifest.shard(shard)
        return (f"{row.sha256}.tar", rows_copy(row)), row.bytes

    def is_here(self, shard: int) -> bool:
        """Whether there are copies of it and of its rows on the node."""
        manifest, row = self._manifest, self._manifest.shard(shard)
        rows = not isinstance(manifest, RemoteManifest) or manifest.has_rows(shard)
        return rows and self._cache.has(f"{row.sha256}.tar", row.bytes)

    def bring(self, shard: int, need: int) -> bool:
        """Fetch a shard and its rows of the index, unless others do.

        Returns False where only shards that are needed sooner could make room.

        Raises:
            DataError: it cannot be had.
        """
        manifest, row = self._manifest, self._manifest.shard(shard)
        if isinstance(manifest, RemoteManifest) and not manifest.bring_rows(shard, need):
            return False
        return self._cache.bring(f"{row.sha256}.tar", row.bytes, partial(self._fetch, row), need)

    def _read_once(self, number: int, offset: int, count: int) -> bytes:
        shard = self._manifest.shard(number)
        name = f"{shard.sha256}.tar"
        descriptor = self._cache.find(name, shard.bytes)
        self.reads.count(found=descriptor is not None)
        if descriptor is None:
            descriptor = self._cache.open(name, shard.bytes, partial(self._fetch, shard))
        try:
            self._latest = number, os.fstat(descriptor)
            return read_whole(descriptor, offset, count)
        finally:
            os.close(descriptor)

    def _fetch(self, shard: Shard, stream: IO[bytes], heartbeat: Heartbeat) -> None:
        """Write a shard, twice if the first copy is damaged."""
        name, kind = self.name_of(shard.number), CHECKSUMS[self._manifest.checksum]
        for _ in range(2):
            stream.seek(0)
            if self._copy(shard, stream, heartbeat) == shard.sha256:
                return
            logging.getLogger(__name__).warning("%s arrived with another %s", name, kind)
        raise DataError(
            f"{name} has changed since the manifest was written (its {kind} differs, fetched "
            f"twice); {REBUILD}"
        )

    def _copy(self, shard: Shard, stream: IO[bytes], heartbeat: Heartbeat) -> str:
        """Write a shard and return the hash of what was written."""
        digest = new_sum(self._manifest.checksum)
        for content in self._server.read_file(self._address(shard.number), shard.bytes):
            stream.write(content)
            digest.update(content)
            self.reads.bytes += len(content)
            heartbeat()
        return digest.hexdigest()
