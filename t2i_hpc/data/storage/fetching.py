"""Files on a server: their addresses, and reads of them in ranges, many at once.

Files are read through fsspec, in ranges, each with a time limit and retried on its own: a server
that dies within a shard costs the ranges in flight. One that knows no ranges sends the whole file,
of which nothing is thrown away. A client of fsspec belongs to the process that made it, since a
fork leaves the thread of its event loop behind: each process makes its own when it first reads,
and keeps that of its parent untouched, whose connections it would close.

A connection to a far server is slow by itself, so long files are fetched by several. Ranges begin
small, so that a first window is spread over all of them, and double while they take little time.

An address is data: what would run a command (``pipe:``) or open anything but the kinds of
server that are offered is refused by name.
"""

from __future__ import annotations

import asyncio
import json
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import CancelledError, Future
from typing import Any, TypeVar
from urllib.parse import urlsplit, urlunsplit

from braceexpand import braceexpand

from t2i_hpc.common.errors import ConfigurationError, DataError
from t2i_hpc.data.storage.object_stores import options_of
from t2i_hpc.data.storage.retry import IncompleteError, RetryPolicy, scheme_of, shown

NEEDED = {"http": "aiohttp", "https": "aiohttp", "s3": "s3fs", "gs": "gcsfs"}
_OFFERED = "a folder or an address that begins with http://, https://, s3:// or gs://"
BLOCK = 4 << 20  # bytes asked for at once, at most
_SMALLEST = 512 << 10
_PROBE = 16 << 10
_SHORT, _LONG = 0.25, 1.0  # seconds that a range of a good size takes
CONNECTIONS = 24
_MOST_CONNECTIONS = 256
_LONGEST_TRY = 30.0  # seconds for a block: 140 kB/s are enough
_LARGEST_JSON = 64 << 20  # bytes
_ADVICE = (
    "see whether the address is right and the server answers, then start the same command "
    "again; data.retry_seconds waits longer"
)
_Result = TypeVar("_Result")
_clients: dict[tuple[int, str], Any] = {}
_connecting = threading.Lock()


class Server:
    """Reads of files on any server that is offered.

    Args:
        retry_seconds: for which a failing read is tried again.
        connections: ranges that are asked for at once, by all threads of a process.
    """

    def __init__(self, retry_seconds: float, connections: int = CONNECTIONS) -> None:
        self.retry = RetryPolicy(retry_seconds)
        self.connections = connections
        self._lanes: tuple[int, asyncio.Semaphore] | None = None  # process, and what bounds it
        self._block = min(_SMALLEST, BLOCK)
        self._knows_ranges: bool | None = None  # None: not known yet

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_lanes": None}

    def read(self, address: str, start: int, count: int) -> bytes:
        """Return exactly `count` bytes from `start` on.

        Raises:
            DataError: they cannot be read.
        """
        return self.read_on(address, start, count)[:count]

    def read_on(self, address: str, start: int, count: int) -> bytes:
        """Return `count` bytes from `start` on, or more where the server sends more."""
        return self._attempt(address, self._whole(address, start, count))

    def read_file(self, address: str, size: int) -> Generator[bytes, None, None]:
        """Yield a file of `size` bytes in order, while ranges of what follows are on their way.

        Raises:
            DataError: it cannot be read.
        """
        asked, done = 0, 0
        coming: deque[tuple[int, int, Future[bytes]]] = deque()
        try:
            while done < size:
                # Whether the server knows ranges is to be seen before many whole files come.
                known = self._knows_ranges or size <= _SMALLEST
                most, block = (self.connections, self._block) if known else (1, _PROBE)
                while asked < size and len(coming) < most:
                    count = min(block, size - asked)
                    coming.append((asked, count, self._begin(address, asked, count)))
                    asked += count
                start, count, future = coming.popleft()
                content = self._attempt(address, self._whole(address, start, count, future))
                self._knows_ranges = len(content) == count < size or self._knows_ranges is True
                content = content[: size - done]
                done += len(content)
                if len(content) > count:  # all that follows came as well
                    asked = done
                yield content
        finally:
            for _, _, future in coming:
                future.cancel()

    def head(self, address: str, count: int) -> bytes:
        """Return up to `count` bytes from the beginning on: fewer if the file is shorter, all of
        it where the server knows no ranges."""
        content = self._attempt(address, lambda seconds: _fetch(address, 0, count, seconds))
        if len(content) > count:
            self._knows_ranges = False
        return content

    def json(self, address: str, advice: str = "") -> bytes:
        """Return a JSON file as it is; one that is cut is fetched again.

        Args:
            address: of the file.
            advice: what to do first where it cannot be had.

        Raises:
            DataError: it cannot be read.
        """

        def whole(seconds: float) -> bytes:
            content = _fetch(address, 0, _LARGEST_JSON, seconds)
            try:
                json.loads(content)
            except (ValueError, RecursionError) as error:
                raise IncompleteError(f"it is no whole JSON file: {error}") from error
            return content

        return self._attempt(address, whole, advice)

    def size(self, address: str) -> int:
        """Return the length of a file in bytes."""

        def asked(seconds: float) -> int:
            size = _call(address, "_info", seconds)["size"]
            if size is None:
                raise IncompleteError("the server does not give its length")
            return int(size)

        return self._attempt(address, asked)

    def stamp(self, address: str) -> tuple[int, str]:
        """Return the length of a file in bytes, and what names its version; "": nothing does."""

        def asked(seconds: float) -> tuple[int, str]:
            found = {key.lower(): value for key, value in _call(address, "_info", seconds).items()}
            if found["size"] is None:
                raise IncompleteError("the server does not give its length")
            names = (found.get(key) for key in ("etag", "lastmodified", "last-modified"))
            return int(found["size"]), next((str(name) for name in names if name), "")

        return self._attempt(address, asked)

    def _attempt(
        self, address: str, action: Callable[[float], _Result], advice: str = ""
    ) -> _Result:
        return self.retry.attempt(shown(address), action, advice + _ADVICE)

    def _whole(
        self, address: str, start: int, count: int, first: Future[bytes] | None = None
    ) -> Callable[[float], bytes]:
        """Return what fetches a range; a first try of it may be under way."""
        tries = iter([] if first is None else [first])

        def whole(seconds: float) -> bytes:
            begun = next(tries, None)
            content = _result_of(begun) if begun else _fetch(address, start, count, seconds)
            if len(content) < count:
                raise IncompleteError(f"{len(content):,} of {count:,} bytes came")
            return content

        return whole

    def _begin(self, address: str, start: int, count: int) -> Future[bytes]:
        """Ask for a range as soon as a connection is free."""
        limit = min(max(self.retry.seconds, 1.0), _LONGEST_TRY)

        async def fetched() -> bytes:
            async with self._connection():
                begin = time.monotonic()
                content = await asyncio.wait_for(_range(address, start, count), limit)
                self._pace(count, time.monotonic() - begin)
            return content

        try:
            loop = _client(scheme_of(address)).loop
        except Exception as error:  # judged and retried where the range is waited for
            failed: Future[bytes] = Future()
            failed.set_exception(error)
            return failed
        return asyncio.run_coroutine_threadsafe(fetched(), loop)

    def _connection(self) -> asyncio.Semaphore:
        if self._lanes is None or self._lanes[0] != os.getpid():
            self._lanes = os.getpid(), asyncio.Semaphore(self.connections)
        return self._lanes[1]

    def _pace(self, count: int, seconds: float) -> None:
        """Fit the size of ranges to the time that one took."""
        if seconds < _SHORT and count == self._block:
            self._block = min(BLOCK, 2 * self._block)
        elif seconds > _LONG:
            self._block = max(min(_SMALLEST, BLOCK), self._block // 2)


def _result_of(future: Future[bytes]) -> bytes:
    try:
        return future.result()
    except CancelledError as error:
        raise IncompleteError("the request was given up") from error


async def _range(address: str, start: int, count: int) -> bytes:
    client = _client(scheme_of(address))
    content: bytes = await client._cat_file(address, start=start, end=start + count)
    return content[start:] if len(content) > count else content  # the whole file came


def _fetch(address: str, start: int, count: int, seconds: float) -> bytes:
    content: bytes = _call(address, "_cat_file", seconds, start=start, end=start + count)
    return content[start:] if len(content) > count else content  # the whole file came


def _call(address: str, method: str, seconds: float, **arguments: Any) -> Any:
    from fsspec.asyn import sync

    client = _client(scheme_of(address))

    async def bounded() -> Any:
        limit = min(seconds, _LONGEST_TRY)
        return await asyncio.wait_for(getattr(client, method)(address, **arguments), limit)

    return sync(client.loop, bounded)


def _client(scheme: str) -> Any:
    process = os.getpid()
    with _connecting:
        if (process, scheme) not in _clients:
            _clients[process, scheme] = _connect(scheme)
        return _clients[process, scheme]


def _connect(scheme: str) -> Any:
    import fsspec.asyn

    options: dict[str, Any] = {}
    if scheme.startswith("http"):
        # Proxies as the environment names them; bytes as they are, since ranges count those.
        options = {
            "client_kwargs": {"trust_env": True},
            "headers": {"Accept-Encoding": "identity"},
        }
    elif scheme == "s3":
        options = {"config_kwargs": {"max_pool_connections": _MOST_CONNECTIONS}}
    options |= options_of(scheme)
    try:
        client = fsspec.filesystem(scheme, **options)
        if scheme.startswith("http"):  # or each of many first requests would make a session
            fsspec.asyn.sync(client.loop, client.set_session)
        return client
    except ImportError as error:
        package = NEEDED[scheme]
        raise DataError(
            f"{scheme}:// needs the package {package}: pip install {package}"
        ) from error


def is_remote(address: str, setting: str) -> bool:
    """Tell an address on a server from a path.

    Args:
        address: what was given.
        setting: the key it was given as, for messages.

    Raises:
        DataError: a command, or a kind of server that is not offered.
    """
    if address.lower().startswith("pipe:"):
        raise DataError(
            f"{setting}=pipe:… would run a command, which is never done: name {_OFFERED}"
        )
    if "://" not in address:
        return False
    if scheme_of(address) not in NEEDED:
        raise DataError(f"{setting}={shown(address)} is not offered: name {_OFFERED}")
    return True


def expand_braces(patterns: Sequence[str], setting: str) -> list[str]:
    """Return the addresses that patterns name, such as ``s3://bucket/{000..127}.tar``.

    Raises:
        ConfigurationError: braces do not match.
    """
    try:
        return [address for pattern in patterns for address in braceexpand(pattern)]
    except ValueError as error:
        raise ConfigurationError(f"{setting}: {error}") from error


def join(address: str, *names: str) -> str:
    """Return the address of a file in a folder; a query, such as a signature, stays behind it."""
    if not scheme_of(address).startswith("http"):
        return "/".join([address.rstrip("/"), *names])
    parts = urlsplit(address)
    return urlunsplit(parts._replace(path="/".join([parts.path.rstrip("/"), *names])))
