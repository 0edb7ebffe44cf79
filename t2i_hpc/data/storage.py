"""Where the bytes of shards come from.

``os.pread`` has no file position, so descriptors may be shared by forked workers; a copy that
was pickled to another process opens its own. The number of open descriptors is bounded, since
a data set may have more shards than a process may open files.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from typing import Any, Protocol

from t2i_hpc.common.errors import DataError
from t2i_hpc.data.manifest import REBUILD, Manifest, shard_name

_OPEN_FILES = 64


class Storage(Protocol):
    """Positioned reads from numbered shards; not for several threads at a time."""

    def read(self, shard: int, offset: int, count: int) -> bytes:
        """Return exactly `count` bytes of a shard.

        Raises:
            DataError: they cannot be had.
        """

    def forget(self, shard: int) -> None:
        """Drop what is kept of a shard (a descriptor, a copy), so that it is fetched anew."""

    def name_of(self, shard: int) -> str:
        """Return the path or URL of a shard, for messages."""


class LocalStorage:
    """Shards in the manifest's own folder."""

    def __init__(self, manifest: Manifest) -> None:
        self._manifest = manifest
        self._files: OrderedDict[int, int] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_files": OrderedDict()}

    def __del__(self) -> None:
        for descriptor in self.__dict__.get("_files", {}).values():
            os.close(descriptor)

    def read(self, shard: int, offset: int, count: int) -> bytes:
        """Return exactly `count` bytes of a shard."""
        content = os.pread(self._descriptor(shard), count, offset)
        if len(content) != count:
            raise DataError(
                f"{self.name_of(shard)} ends within a sample: it was cut while it was in use; "
                f"{REBUILD}"
            )
        return content

    def forget(self, shard: int) -> None:
        """Close a shard."""
        if shard in self._files:
            os.close(self._files.pop(shard))

    def name_of(self, shard: int) -> str:
        """Return the path of a shard."""
        return str(self._manifest.folder / shard_name(shard))

    def _descriptor(self, shard: int) -> int:
        if shard not in self._files:
            while len(self._files) >= _OPEN_FILES:
                os.close(self._files.popitem(last=False)[1])
            try:
                self._files[shard] = os.open(self.name_of(shard), os.O_RDONLY)
            except OSError as error:
                raise DataError(
                    f"cannot open the shard {self.name_of(shard)}: {error.strerror}"
                ) from error
        self._files.move_to_end(shard)
        return self._files[shard]
