"""Which copies of a cache will be needed, and when: what its prefetchers tell each other.

A prefetcher writes the names of the copies that its job will read, in order, into a file. Whoever
needs room reads all these files: the copy that is needed last, by the job that needs it first, goes
first (Belady, "A study of replacement algorithms for a virtual-storage computer", 1966). Copies
that nobody has planned go before all others, the one used longest ago first.

A plan counts for as long as its prefetcher holds the lock beside it, which the kernel takes from
the dead. The lock's file holds the bytes that were fetched, and its time is that of the last
progress, so that nobody waits for a prefetcher that is stuck.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import struct
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from t2i_hpc.common.files import write_bytes

FRESH = 3.0  # seconds without progress after which nobody waits for a prefetcher
_BYTES = struct.Struct("<q")


class Plan:
    """The plan of one prefetcher, which holds its lock.

    Args:
        path: of the lock.
        descriptor: of the lock.
    """

    def __init__(self, path: Path, descriptor: int) -> None:
        self._path, self._descriptor = path, descriptor

    @classmethod
    def claim(cls, folder: Path, key: str) -> Plan | None:
        """Return a job's plan, None where another process of it has it.

        Raises:
            OSError: the folder has no locks.
        """
        path = folder / f"{key}.lock"
        while True:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            if not _lock(descriptor):
                os.close(descriptor)
                return None
            with contextlib.suppress(FileNotFoundError):  # someone may have swept it meanwhile
                if os.path.samestat(path.stat(), os.fstat(descriptor)):
                    return cls(path, descriptor)
            os.close(descriptor)

    def publish(self, coming: Sequence[str], later: Sequence[str]) -> None:
        """Say what is needed, in order.

        Args:
            coming: names of copies that are here or will be fetched now.
            later: of others, that are worth keeping.
        """
        content = json.dumps({"coming": list(coming), "later": list(later)})
        write_bytes(self._path.with_suffix(".json"), content.encode())

    def progress(self, fetched: int) -> None:
        """Tell that there is progress, and of how many bytes in all."""
        os.pwrite(self._descriptor, _BYTES.pack(fetched), 0)

    def close(self) -> None:
        """Give the lock back."""
        os.close(self._descriptor)


class Plans:
    """All plans of a cache.

    Args:
        folder: where they are.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._read: dict[Path, tuple[int, list[str], frozenset[str]]] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_read": {}}

    def needs(self) -> dict[str, int]:
        """Return how soon each planned copy is needed, 0 the soonest; sweep plans of the dead."""
        needs: dict[str, int] = {}
        for lock in self._folder.glob("*.lock"):
            if self._sweep(lock):
                continue
            for turn, name in enumerate(self._content(lock)[0]):
                needs[name] = min(turn, needs.get(name, turn))
        return needs

    def is_coming(self, name: str) -> bool:
        """Whether a prefetcher that makes progress is about to fetch a copy."""
        now = time.time()
        for lock in self._folder.glob("*.lock"):
            with contextlib.suppress(OSError):
                fresh = abs(now - lock.stat().st_mtime) < FRESH
                if fresh and name in self._content(lock)[1] and not self._sweep(lock):
                    return True
        return False

    def fetched(self, key: str) -> int:
        """Return the bytes that a job's prefetcher has fetched on this node."""
        with contextlib.suppress(OSError, struct.error):
            return int(_BYTES.unpack((self._folder / f"{key}.lock").read_bytes()[: _BYTES.size])[0])
        return 0

    def _content(self, lock: Path) -> tuple[list[str], frozenset[str]]:
        """Return the names of a plan in order, and those that are coming."""
        path = lock.with_suffix(".json")
        try:
            written = path.stat().st_mtime_ns
            if path not in self._read or self._read[path][0] != written:
                found = json.loads(path.read_bytes())
                coming = found["coming"]
                self._read[path] = written, [*coming, *found["later"]], frozenset(coming)
        except (OSError, ValueError, KeyError, TypeError):
            return [], frozenset()
        return self._read[path][1:]

    def _sweep(self, lock: Path) -> bool:
        """Remove a plan whose prefetcher is dead; return whether it is."""
        for descriptor in _opened(lock):
            if _lock(descriptor):
                lock.with_suffix(".json").unlink(missing_ok=True)
                lock.unlink(missing_ok=True)
                return True
        return False


def _opened(path: Path) -> Iterator[int]:
    with contextlib.suppress(FileNotFoundError):
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            yield descriptor
        finally:
            os.close(descriptor)


def _lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
