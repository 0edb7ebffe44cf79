"""Shards that are read where they are, sample by sample: nothing is kept on the node."""

from __future__ import annotations

from t2i_hpc.data.manifest import Manifest
from t2i_hpc.data.storage.patience import Patience
from t2i_hpc.data.storage.server import Server
from t2i_hpc.data.storage.urls import join, shown
from t2i_hpc.data.tables import shard_name


class RangedStorage:
    """One request a sample."""

    def __init__(self, manifest: Manifest, server: Server) -> None:
        self._manifest, self._server = manifest, server

    @property
    def patience(self) -> Patience:
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
