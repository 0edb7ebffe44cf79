"""Shards in a folder, and what every storage of shards offers.

``os.pread`` has no file position, so descriptors may be shared by forked workers; a copy that
was pickled to another process opens its own. The number of open descriptors is bounded, since
a data set may have more shards than a process may open files.
"""

from __future__ import annotations

import os
import resource
from collections import OrderedDict
from pathlib import Path
from typing import Any, Protocol

from t2i_hpc.data.format.manifest import REBUILD, Manifest, shard_name
from t2i_hpc.data.storage.retry import IncompleteError, RetryPolicy

OPEN_FILES = 64
ADVICE = (
    "see whether the file is whole and its file system answers, then start the same command "
    f"again, or {REBUILD}; data.retry_seconds waits longer"
)


class Storage(Protocol):
    """Positioned reads from numbered shards; not for several threads at a time."""

    retry: RetryPolicy

    def read(self, shard: int, offset: int, count: int) -> bytes:
        """Return exactly `count` bytes of a shard.

        Raises:
            DataError: they cannot be read.
        """

    def forget(self, shard: int) -> None:
        """Drop what is kept of a shard (descriptor, copy), so that it is opened or fetched anew."""

    def name_of(self, shard: int) -> str:
        """Return the path or URL of a shard, for messages."""


class LocalStorage:
    """Positioned reads from the tars in the manifest's own folder.

    Args:
        manifest: of the split.
        retry_seconds: for which a failing read is tried again.
        open_files: tars that may be kept open; half of what the process may open at most.
    """

    def __init__(
        self, manifest: Manifest, retry_seconds: float = 0.0, open_files: int = OPEN_FILES
    ) -> None:
        self._manifest = manifest
        self.retry = RetryPolicy(retry_seconds)
        allowed = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        if allowed != resource.RLIM_INFINITY:
            open_files = min(open_files, allowed // 2)
        self._most = max(1, open_files)
        self._files: OrderedDict[int, int] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_files": OrderedDict()}

    def __del__(self) -> None:
        for descriptor in self.__dict__.get("_files", {}).values():
            os.close(descriptor)

    def read(self, shard: int, offset: int, count: int) -> bytes:
        """Return exactly `count` bytes of a shard."""
        descriptor = self._files.get(shard)
        if descriptor is not None:
            self._files.move_to_end(shard)
            try:
                content = os.pread(descriptor, count, offset)
            except OSError:
                content = b""
            if len(content) == count:
                return content
        return self.retry.attempt(
            self.name_of(shard),
            lambda _: self._reopen_and_read(shard, offset, count),
            ADVICE,
            is_permanent_here,
        )

    def forget(self, shard: int) -> None:
        """Close a shard."""
        if shard in self._files:
            os.close(self._files.pop(shard))

    def name_of(self, shard: int) -> str:
        """Return the path of a shard."""
        return str(Path(self._manifest.location or self._manifest.folder) / shard_name(shard))

    def _reopen_and_read(self, shard: int, offset: int, count: int) -> bytes:
        self.forget(shard)
        while len(self._files) >= self._most:
            os.close(self._files.popitem(last=False)[1])
        self._files[shard] = self._open(shard)
        return read_whole(self._files[shard], offset, count)

    def _open(self, shard: int) -> int:
        descriptor = os.open(self.name_of(shard), os.O_RDONLY | os.O_CLOEXEC)
        found, size = os.fstat(descriptor).st_size, self._manifest.shard(shard).bytes
        if found != size:
            os.close(descriptor)
            raise IncompleteError(f"it has {found:,} bytes instead of {size:,}: cut or changed")
        return descriptor


def read_whole(descriptor: int, offset: int, count: int) -> bytes:
    """Return exactly `count` bytes of an open file.

    Raises:
        IncompleteError: it ends before.
    """
    content = os.pread(descriptor, count, offset)
    if len(content) != count:
        raise IncompleteError("it ends within a sample: it was cut while it was in use")
    return content


def is_permanent_here(error: Exception) -> bool:
    """Whether a failure to read a file here is permanent."""
    return isinstance(error, (PermissionError, IsADirectoryError))
