"""Shards of a server, each copied whole to the node when its first sample is wanted."""

from __future__ import annotations

import hashlib
import logging
import os
from typing import IO

from t2i_hpc.common.errors import DataError
from t2i_hpc.data.manifest import Manifest
from t2i_hpc.data.storage.cache import Beat, Cache
from t2i_hpc.data.storage.files import ADVICE, is_final, read_whole
from t2i_hpc.data.storage.patience import Patience
from t2i_hpc.data.storage.server import BLOCK, Server
from t2i_hpc.data.storage.urls import join, shown
from t2i_hpc.data.tables import REBUILD, Shard, shard_name


class CachedStorage:
    """Reads of copies; a copy whose bytes are not those of the manifest is never kept.

    A copy is open for the time of a read alone (opening takes microseconds on a node's disk):
    bytes of a deleted file stay on the disk for as long as somebody has it open.
    """

    def __init__(self, manifest: Manifest, server: Server, cache: Cache) -> None:
        self._manifest, self._server, self._cache = manifest, server, cache
        self._latest: tuple[int, os.stat_result] | None = None  # shard and copy read last

    @property
    def patience(self) -> Patience:
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
