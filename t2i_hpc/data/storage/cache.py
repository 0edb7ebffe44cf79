"""A folder of copies that the processes of a node share.

A copy is named by its content, so it is right or it is not there: it is written under another
name, compared, flushed and renamed. One process fetches while others wait for it. What decides
that is a lock of the kernel, which dies with its holder; a half-fetched copy that a dead
process left behind is overwritten or swept away. The copies that are needed last make room for new
ones (:mod:`t2i_hpc.data.storage.eviction`). Nobody keeps a copy open: what is deleted leaves the
disk at once, so the limit holds there.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from t2i_hpc.common.errors import DataError
from t2i_hpc.common.files import fsync_folder, size_text
from t2i_hpc.data.storage.eviction import Plans

Heartbeat = Callable[[], None]
Fetch = Callable[[IO[bytes], Heartbeat], None]  # writes a copy
_POLL = 0.05  # seconds between two tries of a lock, after some that come sooner
_SHORT_POLL = 0.005  # seconds between two looks for a copy that is coming
_PART = "*.part"
_SETTLE = 5.0  # seconds in which a disk may still give back what was deleted
_GRACE = 60.0  # seconds beyond retry_seconds after which a lock's holder counts as stuck
_SPARE = 64 << 20  # bytes of the disk that are left free, but no more than
_SPARE_PART = 20  # the 20th part of it: a small disk is used, too
_FULL = (errno.ENOSPC, errno.EDQUOT)
_ELSEWHERE = "name another folder with data.cache="


class _NoRoomError(Exception):
    """Only copies that are needed sooner could make room."""


class Cache:
    """Copies of files by name.

    Args:
        given: the folder; empty: one of this user's in the node's folder for temporary files.
        limit: bytes that all copies may take.
        retry_seconds: for which a process that fetches may make no progress.

    Raises:
        DataError: the folder cannot be made or belongs to someone else.
    """

    def __init__(self, given: str, limit: int, retry_seconds: float) -> None:
        self.folder = _folder(given)
        self.limit, self._stuck_after = limit, retry_seconds + _GRACE
        self.plans = Plans(self.folder / "plans")

    def open(self, name: str, size: int, fetch: Fetch) -> int:
        """Return a descriptor of a copy, which is fetched if it is not there.

        Args:
            name: of the copy; begins with two hexadecimal digits of its hash.
            size: its bytes.
            fetch: writes and compares it; calls its second argument whenever there is progress.

        Raises:
            DataError: there is no room, or what `fetch` raises.
        """
        path = self.folder / "shards" / name
        while (descriptor := _opened(path, size)) is None:
            if self.plans.is_coming(name):
                time.sleep(_SHORT_POLL)  # the prefetcher has more connections, and an order
                continue
            with self.locked(name) as heartbeat:
                if not path.exists():  # nobody else fetched it meanwhile
                    self._add(path, size, fetch, heartbeat)
        return descriptor

    def find(self, name: str, size: int) -> int | None:
        """Return a descriptor of a copy; None where it has to be fetched."""
        return _opened(self.folder / "shards" / name, size)

    def has(self, name: str, size: int) -> bool:
        """Whether there is a copy of this size."""
        with contextlib.suppress(FileNotFoundError):
            return (self.folder / "shards" / name).stat().st_size == size
        return False

    def bring(self, name: str, size: int, fetch: Fetch, need: int) -> bool:
        """Fetch a copy before it is needed, unless someone else does.

        Returns False where only copies that are needed sooner could make room.

        Args:
            name, size, fetch: as for :meth:`open`.
            need: how many other copies are needed before it.

        Raises:
            DataError: what `fetch` raises.
        """
        path = self.folder / "shards" / name
        with self._lock_file(name) as (descriptor, lock):
            if _lock(descriptor, lock) and not self.has(name, size):
                try:
                    self._add(path, size, fetch, lambda: os.utime(descriptor), need)
                except _NoRoomError:
                    return False
        return True

    def room(self) -> int:
        """Return how many bytes of copies the disk can hold, if nobody else fills it."""
        copies = sum(count for _, count, _ in self._copies())
        return max(0, self._free() + copies - self._spare())

    def drop(self, name: str, found: os.stat_result) -> None:
        """Remove a copy that was found damaged, unless it was replaced since it was read."""
        path = self.folder / "shards" / name
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(path.stat(), found):
                path.unlink()

    @contextlib.contextmanager
    def locked(self, name: str) -> Iterator[Heartbeat]:
        """Hold the lock of a name; the block calls what it is given whenever there is progress.

        Raises:
            DataError: its holder makes no progress, or the file system has no locks.
        """
        with self._lock_file(name) as (descriptor, path):
            self._await(descriptor, path)
            yield lambda: os.utime(descriptor)

    @contextlib.contextmanager
    def _lock_file(self, name: str) -> Iterator[tuple[int, Path]]:
        path = self.folder / "locks" / name[:2]  # few locks for many names: none need be removed
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            yield descriptor, path
        finally:
            with contextlib.suppress(OSError):
                fcntl.flock(descriptor, fcntl.LOCK_UN)  # children may hold the descriptor too
            os.close(descriptor)

    def _await(self, descriptor: int, path: Path) -> None:
        begin, pause = time.monotonic(), _SHORT_POLL
        moved = os.fstat(descriptor).st_mtime_ns
        while not _lock(descriptor, path):
            latest = os.fstat(descriptor).st_mtime_ns
            if latest != moved:
                begin, moved = time.monotonic(), latest
            if time.monotonic() - begin > self._stuck_after:
                raise DataError(
                    f"another process holds {path} and has fetched nothing for "
                    f"{self._stuck_after:.0f} s: end it or {_ELSEWHERE}"
                )
            time.sleep(pause)
            pause = min(_POLL, 2 * pause)

    def _add(
        self,
        path: Path,
        size: int,
        fetch: Fetch,
        heartbeat: Heartbeat,
        need: int | None = None,
    ) -> None:
        part = path.with_suffix(".part")
        try:
            with part.open("w+b") as stream:
                self._reserve(stream, size, heartbeat, need)
                fetch(stream, heartbeat)
                stream.flush()
                os.fsync(stream.fileno())
            part.replace(path)
            fsync_folder(path.parent)
        except OSError as error:
            raise DataError(
                f"cannot keep a copy in {path.parent} ({error.strerror or error}): free space "
                f"there or {_ELSEWHERE}"
            ) from error
        finally:
            part.unlink(missing_ok=True)

    def _reserve(
        self, stream: IO[bytes], size: int, heartbeat: Heartbeat, need: int | None
    ) -> None:
        """Take `size` bytes of the disk for a file, for which copies make room.

        What others are fetching can make no room yet: it is waited for, but by a prefetcher.

        Raises:
            DataError: there is no room even without any copy.
        """
        begin, fetched, short = time.monotonic(), self._fetched(), 0
        while True:
            with self.locked("room"):
                self._sweep()
                if self._make_room(size, short, need):
                    short = 0 if _allocate(stream, size) else size  # a quota shows only now
                    if not short:
                        return
            if need is not None:
                raise _NoRoomError
            heartbeat()
            if (latest := self._fetched()) != fetched:
                begin, fetched = time.monotonic(), latest
            alone = not any(path != Path(stream.name) for _, _, path in fetched)
            waited = time.monotonic() - begin
            if (alone and waited > _SETTLE) or waited > self._stuck_after:
                raise DataError(
                    f"the disk of {self.folder} has {size_text(self._free())} left, too few for "
                    f"a shard of {size_text(size)}: free space there or {_ELSEWHERE}"
                )
            time.sleep(_POLL)

    def _make_room(self, size: int, short: int, need: int | None) -> bool:
        """Delete the fewest copies that leave room; nothing where all of them would not.

        Args:
            size: bytes that are wanted.
            short: bytes by which the disk has less room than it says.
            need: how many others are needed sooner, which must stay; None: none must.
        """
        copies = self._copies()
        used = sum(count for _, count, _ in copies) + sum(count for _, count, _ in self._fetched())
        needed = size + self._spare()
        missing = max(used + size - self.limit, needed - self._free(), short)
        if missing > 0:
            needs = self.plans.needs()
            unplanned = len(needs) + (need or 0) + 1
            if need is not None:
                copies = [one for one in copies if needs.get(one[2].name, unplanned) > need]
            # Last needed first; of those that nobody has planned, the one used longest ago.
            copies.sort(key=lambda one: (-needs.get(one[2].name, unplanned), one[0]))
        if missing > sum(count for _, count, _ in copies):
            return False
        for _, count, path in copies:
            if missing <= 0:
                break
            path.unlink(missing_ok=True)
            missing -= count
        return self._free() >= needed

    def _fetched(self) -> list[tuple[float, int, Path]]:
        """Return (time of last progress, bytes, path) of what is being fetched."""
        return [found for found in _stats(self.folder / "shards", _PART) if found[1]]

    def _copies(self) -> list[tuple[float, int, Path]]:
        """Return (time of last use, bytes, path) of the copies."""
        found = _stats(self.folder / "shards", "*")
        return [copy for copy in found if copy[2].suffix != ".part"]

    def _free(self) -> int:
        return shutil.disk_usage(self.folder).free

    def _spare(self) -> int:
        return min(_SPARE, shutil.disk_usage(self.folder).total // _SPARE_PART)

    def _sweep(self) -> None:
        """Remove what processes that died while fetching left behind."""
        for _, _, path in _stats(self.folder / "shards", _PART):
            with (self.folder / "locks" / path.name[:2]).open("a") as stream:
                if _lock(stream.fileno(), path):
                    path.unlink(missing_ok=True)


def _allocate(stream: IO[bytes], size: int) -> bool:
    """Take room on the disk for a file; return whether there is as much."""
    try:
        os.posix_fallocate(stream.fileno(), 0, size)
    except OSError as error:
        if error.errno not in _FULL:
            raise
        stream.truncate(0)
        return False
    return True


def _folder(given: str) -> Path:
    base = os.environ.get("SLURM_TMPDIR") or tempfile.gettempdir()
    folder = Path(given).expanduser() if given else Path(base) / f"t2i_hpc-{os.getuid()}"
    try:
        # In a folder for everybody's temporary files ours is private; one that was named is shared.
        folder.mkdir(mode=0o777 if given else 0o700, parents=True, exist_ok=True)
        for name in ("shards", "locks", "tables", "plans"):
            (folder / name).mkdir(exist_ok=True)
    except OSError as error:
        raise DataError(f"cannot make {folder} ({error.strerror}): {_ELSEWHERE}") from error
    if not given and (folder.is_symlink() or folder.stat().st_uid != os.getuid()):
        raise DataError(f"{folder} belongs to someone else: {_ELSEWHERE}")
    return folder


def _opened(path: Path, size: int) -> int | None:
    """Return a descriptor of a whole copy and note its use; a copy of another size is removed."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    if os.fstat(descriptor).st_size == size:
        with contextlib.suppress(OSError):  # a copy of another user may be read, not touched
            os.utime(descriptor)
        return descriptor
    os.close(descriptor)
    path.unlink(missing_ok=True)
    return None


def _lock(descriptor: int, path: Path) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        raise DataError(
            f"the file system of {path} has no file locks ({error.strerror}): {_ELSEWHERE}"
        ) from error
    return True


def _stats(folder: Path, pattern: str) -> Iterator[tuple[float, int, Path]]:
    """Give (time of last use, bytes, path) of each file."""
    for path in folder.glob(pattern):
        with contextlib.suppress(FileNotFoundError):
            stat = path.stat()
            yield stat.st_mtime, stat.st_size, path
