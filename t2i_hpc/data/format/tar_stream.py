"""A tar from its first to its last byte, read once: from a folder or from a server.

The walk of :mod:`t2i_hpc.data.format.tars` asks for headers and members in order, so a window
that moves forward is enough, and each byte is fetched once. The window is one buffer that is used
again and again: it stays in the processor's cache, and no memory is asked for. The hash of the
whole tar is reckoned from the same buffer; SHA-256, which takes longer than all the rest where
images are large, in a thread meanwhile.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager

from t2i_hpc.common.errors import DataError, UserError
from t2i_hpc.data.format.sums import SHA256, new_sum
from t2i_hpc.data.format.tars import OpenTar
from t2i_hpc.data.storage.fetching import Server, is_remote
from t2i_hpc.data.storage.retry import shown

_BLOCK = 1 << 20  # bytes read at once: as much as stays in a core's cache
_AHEAD, _ASKED_AT_ONCE = 4 << 20, 512 << 10  # bytes that the kernel is told of
# Fills a buffer with the bytes from an offset on; returns how many came, 0 at the end.
Fill = Callable[[memoryview, int], int]
Advance = Callable[[int], None]


class UnansweredError(UserError):
    """A tar could not be read, which says nothing of what it holds."""


def fill_from_blocks(blocks: Iterator[bytes]) -> Fill:
    """Return what reads a file that comes in blocks from its beginning on."""
    left = memoryview(b"")

    def fill(target: memoryview, _offset: int) -> int:
        nonlocal left
        left = left or memoryview(next(blocks, b""))
        count = min(len(target), len(left))
        target[:count], left = left[:count], left[count:]
        return count

    return fill


@contextmanager
def open_tar(
    address: str,
    server: Server,
    size: int = -1,
    checksum: str = "",
    advance: Advance = lambda _: None,
) -> Iterator[TarStream]:
    """Open a tar in a folder or on a server; of the latter many ranges come at once.

    Args:
        address: its path or address.
        server: reads of servers, and how often failing ones are tried again.
        size: its bytes; -1: as many as it has.
        checksum: which hash of the whole is reckoned; empty: none.
        advance: told how many bytes more are read.

    Raises:
        UnansweredError: it cannot be read.
        DataError: it cannot be opened.
    """
    with ExitStack() as stack:
        if is_remote(address, "urls"):
            size = server.size(address) if size < 0 else size
            blocks = stack.enter_context(closing(server.read_file(address, size)))
            fill = fill_from_blocks(blocks)
        else:
            advice = "see whether its file system answers"
            descriptor = server.retry.attempt(address, lambda _: _descriptor(address), advice)
            stack.callback(os.close, descriptor)
            size = os.fstat(descriptor).st_size if size < 0 else size
            fill = fill_from_file(descriptor, size)
        tar = TarStream(shown(address), size, fill, advance, checksum)
        stack.callback(tar.close)
        yield tar


def _descriptor(path: str) -> int:
    return os.open(path, os.O_RDONLY | os.O_CLOEXEC)


def fill_from_file(descriptor: int, size: int) -> Fill:
    """Return what reads a file of `size` bytes, whose next bytes the kernel fetches meanwhile.

    By itself the kernel reads ahead by 128 kB on most systems, so the disk would wait while we
    look at what was read. One call fetches no more than a device takes at once, hence several.
    """
    asked = 0

    def fill(target: memoryview, offset: int) -> int:
        nonlocal asked
        end = min(offset + len(target) + _AHEAD, size)
        with contextlib.suppress(OSError):  # it is only advice
            while asked < end:
                os.posix_fadvise(descriptor, asked, _ASKED_AT_ONCE, os.POSIX_FADV_WILLNEED)
                asked += _ASKED_AT_ONCE
        return os.preadv(descriptor, [target], offset)

    return fill


class TarStream(OpenTar):
    """A tar that is read forward.

    Args:
        path: its path or address, for messages.
        size: its bytes.
        fill: reads on; asked for all bytes in order.
        advance: told how many bytes more are read.
        checksum: which hash of the whole is reckoned, see :mod:`t2i_hpc.data.format.sums`;
            empty: none.
    """

    def __init__(
        self, path: str, size: int, fill: Fill, advance: Advance, checksum: str = SHA256
    ) -> None:
        super().__init__(path, -1, size)
        self._advance, self._fill = advance, fill
        self._buffer = memoryview(bytearray(min(_BLOCK, size)))
        self._start = self._end = 0  # of what the buffer holds
        self._sum = new_sum(checksum) if checksum else None
        self._pool = ThreadPoolExecutor(1) if checksum == SHA256 else None
        self._pending: Future[None] | None = None

    def read(self, offset: int, count: int) -> bytes:
        """Return `count` bytes from `offset` on, fewer at the end; never from before the window.

        Raises:
            UnansweredError: the file system or the server does not give them.
        """
        end = offset + count
        if end > self._end:
            end = min(end, self.size)
            while end > self._end:
                self._move(min(offset, self._end), end)
        return self._buffer[offset - self._start : end - self._start].tobytes()

    def sum(self) -> str:
        """Return the hash of the whole tar, after reading what is left of it."""
        while self._end < self.size:
            self._move(self._end, self.size)
        self.close()
        return self._sum.hexdigest() if self._sum is not None else ""

    def close(self) -> None:
        """Wait for the thread that reckons the hash, if there is one."""
        if self._pool is not None:
            self._pool.shutdown()

    def _move(self, offset: int, end: int) -> None:
        """Read on by a buffer, in which stays what is held from `offset` on."""
        if self._pending is not None:  # it reads what is about to be overwritten
            self._pending.result()
        kept = max(self._end - offset, 0)
        wanted = _BLOCK if not kept or end - offset <= _BLOCK else end - offset + _BLOCK
        held = self._buffer[self._end - kept - self._start : self._end - self._start]
        if len(self._buffer) != wanted:
            self._buffer = memoryview(bytearray(wanted))
        window = self._buffer
        window[:kept] = held
        self._start, count = self._end - kept, kept
        while count < wanted and self._end < self.size:
            came = self._filled(window[count : count + self.size - self._end])
            self._add(window[count : count + came])
            count, self._end = count + came, self._end + came

    def _filled(self, target: memoryview) -> int:
        try:
            count = self._fill(target, self._end)
        except (OSError, DataError) as error:
            reason = error.strerror if isinstance(error, OSError) else None
            raise UnansweredError(
                f"cannot read {self.path}: {reason or error}" if reason else str(error)
            ) from error
        if not count:
            raise UnansweredError(f"cannot read {self.path}: it became shorter meanwhile")
        self._advance(count)
        return count

    def _add(self, content: memoryview) -> None:
        if self._sum is None:
            return
        if self._pool is None:
            self._sum.update(content)
            return
        if self._pending is not None:
            self._pending.result()
        self._pending = self._pool.submit(self._sum.update, content)
