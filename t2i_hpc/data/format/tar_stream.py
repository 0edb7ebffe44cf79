"""A tar from its first to its last byte, read once: from a folder or from a server.

The walk of :mod:`t2i_hpc.data.format.tars` asks for headers and members in order, so a window of
a few megabytes that moves forward is enough, and each byte is fetched once, in large blocks. The
SHA-256 of the whole tar is reckoned meanwhile in a thread, which takes a core of its own.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from t2i_hpc.common.errors import DataError, UserError
from t2i_hpc.data.format.tars import OpenTar

BLOCK = 4 << 20  # bytes fetched at once
Fetch = Callable[[int, int], bytes]  # offset, count → at least that many bytes
Advance = Callable[[int], None]


class UnansweredError(UserError):
    """A tar could not be read, which says nothing of what it holds."""


class TarStream(OpenTar):
    """A tar that is read forward.

    Args:
        path: its path or address, for messages.
        size: its bytes.
        fetch: returns the bytes from an offset on, `count` of them or more.
        advance: told how many bytes more are read.
    """

    def __init__(self, path: str, size: int, fetch: Fetch, advance: Advance) -> None:
        super().__init__(path, -1, size)
        self._advance = advance
        self._fetch, self._start, self._window = fetch, 0, b""
        self._hash, self._pool = hashlib.sha256(), ThreadPoolExecutor(1)
        self._pending: Future[None] | None = None

    def read(self, offset: int, count: int) -> bytes:
        """Return `count` bytes from `offset` on, fewer at the end; never from before the window.

        Raises:
            UnansweredError: the file system or the server does not give them.
        """
        end = min(offset + count, self.size)
        if end > self._start + len(self._window):
            self._move(offset, end)
        return self._window[offset - self._start : end - self._start]

    def sha256(self) -> str:
        """Return the hash of the whole tar, after reading what is left of it."""
        for offset in range(self._start + len(self._window), self.size, BLOCK):
            self.read(offset, BLOCK)
        self._settle()
        self._pool.shutdown()
        return self._hash.hexdigest()

    def _move(self, offset: int, end: int) -> None:
        """Move the window so that it holds the bytes from `offset` to `end`."""
        behind = self._start + len(self._window)
        blocks = [self._window[offset - self._start :]] if offset < behind else []
        while behind < end:
            block = self._next_block(behind)
            blocks.append(block if behind >= offset else block[offset - behind :])
            behind += len(block)
        self._start, self._window = offset, b"".join(blocks)

    def _next_block(self, start: int) -> bytes:
        wanted = min(BLOCK, self.size - start)
        try:
            block = self._fetch(start, wanted)[: self.size - start]
        except (OSError, DataError) as error:
            reason = error.strerror if isinstance(error, OSError) else None
            raise UnansweredError(
                f"cannot read {self.path}: {reason or error}" if reason else str(error)
            ) from error
        if len(block) < wanted:
            raise UnansweredError(f"cannot read {self.path}: it became shorter meanwhile")
        self._advance(len(block))
        self._settle()
        self._pending = self._pool.submit(self._hash.update, block)
        return block

    def _settle(self) -> None:
        if self._pending is not None:
            self._pending.result()
