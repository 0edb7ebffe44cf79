"""What every storage of shards offers."""

from __future__ import annotations

from typing import Protocol

from t2i_hpc.data.storage.patience import Patience


class Storage(Protocol):
    """Positioned reads from numbered shards; not for several threads at a time."""

    @property
    def patience(self) -> Patience:
        """How long reads that fail are tried again."""

    def read(self, shard: int, offset: int, count: int) -> bytes:
        """Return exactly `count` bytes of a shard.

        Raises:
            DataError: they cannot be had.
        """

    def forget(self, shard: int) -> None:
        """Drop what is kept of a shard (a descriptor, a copy), so that it is fetched anew."""

    def name_of(self, shard: int) -> str:
        """Return the path or URL of a shard, for messages."""
