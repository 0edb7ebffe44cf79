"""Shards in a folder, and what every storage of shards offers.

``os.pread`` has no file position, so descriptors may be shared by forked workers; a copy that
was pickled to another process opens its own. The number of open descriptors is bounded, since
a data set may have more shards than a process may open files.
"""

from __future__ import annotations

import contextlib
import os
import resource
from collections import OrderedDict
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from t2i_hpc.data.format.manifest import Manifest
from t2i_hpc.data.format.tables import REBUILD
from t2i_hpc.data.storage.retry import IncompleteError, RetryPolicy

OPEN_FILES = 64
_PIECE = 128 << 10  # bytes: of a request to read ahead Linux serves no more than its read-ahead
_SHARED = (
    "nfs",
    "lustre",
    "gpfs",
    "beegfs",
    "cifs",
    "smb",
    "ceph",
    "9p",
    "afs",
    "pvfs",
    "orangefs",
)
_USER_SPACE = "fuse."  # sshfs, s3fs, gcsfuse and the like
ADVICE = (
    "see whether the file is whole and its file system answers, then start the same command "
    f"again, or {REBUILD}; data.retry_seconds waits longer"
)


@dataclass
class Reads:
    """What a process has read from a storage.

    Attributes:
        found: samples whose shard was on the node.
        missed: samples whose shard had to be waited for.
        bytes: that came from a server.
    """

    found: int = 0
    missed: int = 0
    bytes: int = 0

    def count(self, found: bool) -> None:
        """Count a read."""
        self.found += found
        self.missed += not found


class Storage(Protocol):
    """Positioned reads from numbered shards; not for several threads at a time.

    Attributes:
        retry: of what fails in passing.
        reads: what was read so far.
    """

    retry: RetryPolicy
    reads: Reads

    @property
    def looks_ahead(self) -> bool:
        """Whether it gains by knowing which shards will be read."""

    def read(self, shard: int, offset: int, count: int) -> bytes:
        """Return exactly `count` bytes of a shard.

        Raises:
            DataError: they cannot be read.
        """

    def forget(self, shard: int) -> None:
        """Drop what is kept of a shard (descriptor, copy), so that it is opened or fetched anew."""

    def name_of(self, shard: int) -> str:
        """Return the path or URL of a shard, for messages."""

    def knows(self, shard: int) -> bool:
        """Whether :meth:`copies_of` is answered at once."""

    def copies_of(self, shard: int) -> tuple[tuple[str, ...], int]:
        """Return the names of a shard's copies in the cache, if it has any, and its bytes."""

    def is_here(self, shard: int) -> bool:
        """Whether a shard needs not be brought."""

    def passed(self, shard: int) -> None:
        """Take note that a shard has been read: it has to be brought again for another time."""

    def bring(self, shard: int, need: int) -> bool:
        """Bring a shard nearer before it is read; several threads may at a time.

        Args:
            shard: which one.
            need: how many other copies are needed before it.

        Returns:
            False where there is no room for it yet.

        Raises:
            DataError: it cannot be had.
        """


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
        self.retry, self.reads = RetryPolicy(retry_seconds), Reads()
        self._advised: set[int] = set()
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
        return self._manifest.tar(shard)

    @cached_property
    def looks_ahead(self) -> bool:
        """Whether the tars are on a file system that a network is in front of."""
        return is_shared(Path(self.name_of(0)))

    def knows(self, shard: int) -> bool:
        """There are no copies."""
        return False

    def copies_of(self, shard: int) -> tuple[tuple[str, ...], int]:
        """There are no copies."""
        return (), int(self._manifest.table["bytes"][shard])

    def is_here(self, shard: int) -> bool:
        """Whether the kernel was told already."""
        return shard in self._advised

    def passed(self, shard: int) -> None:
        """Let the kernel be told again: the page cache may drop a shard once it was read."""
        self._advised.discard(shard)

    def bring(self, shard: int, need: int) -> bool:
        """Tell the kernel that a shard will be read, so that it reads it into the page cache."""
        self._advised.add(shard)
        with contextlib.suppress(OSError):  # whoever reads it will say what is wrong
            descriptor = os.open(self.name_of(shard), os.O_RDONLY | os.O_CLOEXEC)
            try:
                for begin in range(0, os.fstat(descriptor).st_size, _PIECE):
                    os.posix_fadvise(descriptor, begin, _PIECE, os.POSIX_FADV_WILLNEED)
            finally:
                os.close(descriptor)
        return True

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


def is_shared(path: Path, mounts: Path = Path("/proc/self/mountinfo")) -> bool:
    """Whether a network is between this node and a file, by the kind of its file system.

    Args:
        path: of the file.
        mounts: table of mounts, as proc(5) has it.
    """
    with contextlib.suppress(OSError):
        place, best, kind = str(path.resolve()), "", ""
        for line in mounts.read_text(encoding="utf-8", errors="replace").splitlines():
            fields, _, rest = line.partition(" - ")
            point = fields.split(" ")[4].replace("\\040", " ").rstrip("/")
            if len(point) >= len(best) and (place == point or place.startswith(f"{point}/")):
                best, kind = point, rest.split(" ")[0]
        return kind.startswith((*_SHARED, _USER_SPACE))
    return False
