"""Shards of a server, each copied whole to the node when its first sample is wanted."""

from __future__ import annotations

import hashlib
import logging
from typing import IO

from t2i_hpc.common.errors import DataError
from t2i_hpc.data.manifest import Manifest
from t2i_hpc.data.storage.cache import Beat, Cache
from t2i_hpc.data.storage.files import FileStorage
from t2i_hpc.data.storage.server import BLOCK, Server
from t2i_hpc.data.storage.urls import join, shown
from t2i_hpc.data.tables import REBUILD, Shard, shard_name


class CachedStorage(FileStorage):
    """Reads of copies; a copy whose bytes are not those of the manifest is never kept."""

    def __init__(self, manifest: Manifest, server: Server, cache: Cache) -> None:
        super().__init__(manifest, server.patience.seconds)
        self._server, self._cache = server, cache

    def forget(self, shard: int) -> None:
        """Close a shard and remove its copy, so that it is fetched again."""
        if shard in self._files:
            self._cache.drop(_copy_of(self._manifest.shard(shard)), self._files[shard])
        super().forget(shard)

    def name_of(self, shard: int) -> str:
        """Return the address of a shard, without secrets."""
        return shown(self._address(shard))

    def _address(self, shard: int) -> str:
        return join(self._manifest.location, shard_name(shard))

    def _open(self, number: int) -> int:
        shard = self._manifest.shard(number)

        def fetch(stream: IO[bytes], beat: Beat) -> None:
            self._fetch(shard, stream, beat)

        return self._cache.open(_copy_of(shard), shard.bytes, fetch)

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
