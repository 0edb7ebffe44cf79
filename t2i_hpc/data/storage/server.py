"""Files on servers, through fsspec.

A client of fsspec belongs to the process that made it: its event loop runs in a thread, which
a fork leaves behind. So each process makes its own when it first reads, and the one that a
parent made is kept untouched, since closing it would end the parent's connections.

Files are read in ranges, each with a limit of time and tried again on its own: a server that
dies within a shard costs the range in flight. One that knows no ranges sends the whole file,
of which nothing is thrown away.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable
from typing import Any, TypeVar

from t2i_hpc.common.errors import DataError
from t2i_hpc.data.storage.retry import IncompleteError, RetryPolicy
from t2i_hpc.data.storage.urls import NEEDED, scheme_of, shown

BLOCK = 4 << 20  # bytes asked for at once
_LONGEST_TRY = 30.0  # seconds for a block: 140 kB/s are enough
_LARGEST_JSON = 64 << 20  # bytes
_ADVICE = (
    "see whether the address is right and the server answers, then start the same command "
    "again; data.retry_seconds waits longer"
)
_Result = TypeVar("_Result")
_clients: dict[tuple[int, str], Any] = {}


class Server:
    """Reads of files on any server that is offered.

    Args:
        patience: seconds for which a read that fails is tried again.
    """

    def __init__(self, patience: float) -> None:
        self.patience = RetryPolicy(patience)

    def read(self, address: str, start: int, count: int) -> bytes:
        """Return exactly `count` bytes from `start` on.

        Raises:
            DataError: they cannot be had.
        """
        return self.read_on(address, start, count)[:count]

    def read_on(self, address: str, start: int, count: int) -> bytes:
        """Return `count` bytes from `start` on, or more where the server sends more."""

        def whole(seconds: float) -> bytes:
            content = _fetch(address, start, count, seconds)
            if len(content) < count:
                raise IncompleteError(f"{len(content):,} of {count:,} bytes came")
            return content

        return self._attempt(address, whole)

    def head(self, address: str, count: int) -> bytes:
        """Return up to `count` bytes from the beginning on: fewer if the file is shorter."""
        return self._attempt(address, lambda seconds: _fetch(address, 0, count, seconds))

    def json(self, address: str) -> bytes:
        """Return a JSON file as it is; one that is cut is fetched again."""

        def whole(seconds: float) -> bytes:
            content = _fetch(address, 0, _LARGEST_JSON, seconds)
            try:
                json.loads(content)
            except (ValueError, RecursionError) as error:
                raise IncompleteError(f"it is no whole JSON file: {error}") from error
            return content

        return self._attempt(address, whole)

    def size(self, address: str) -> int:
        """Return the length of a file in bytes."""

        def asked(seconds: float) -> int:
            size = _call(address, "_info", seconds)["size"]
            if size is None:
                raise IncompleteError("the server does not tell its length")
            return int(size)

        return self._attempt(address, asked)

    def _attempt(self, address: str, action: Callable[[float], _Result]) -> _Result:
        return self.patience.attempt(shown(address), action, _ADVICE)


def _fetch(address: str, start: int, count: int, seconds: float) -> bytes:
    content: bytes = _call(address, "_cat_file", seconds, start=start, end=start + count)
    return content[start:] if len(content) > count else content  # the whole file came


def _call(address: str, method: str, seconds: float, **words: Any) -> Any:
    from fsspec.asyn import sync

    client = _client(scheme_of(address))

    async def bounded() -> Any:
        limit = min(seconds, _LONGEST_TRY)
        return await asyncio.wait_for(getattr(client, method)(address, **words), limit)

    return sync(client.loop, bounded)


def _client(scheme: str) -> Any:
    process = os.getpid()
    if (process, scheme) not in _clients:
        _clients[process, scheme] = _connect(scheme)
    return _clients[process, scheme]


def _connect(scheme: str) -> Any:
    import fsspec

    options: dict[str, Any] = {}
    if scheme.startswith("http"):
        # Proxies as the environment names them; bytes as they are, since ranges count those.
        options = {
            "client_kwargs": {"trust_env": True},
            "headers": {"Accept-Encoding": "identity"},
        }
    try:
        return fsspec.filesystem(scheme, **options)
    except ImportError as error:
        package = NEEDED[scheme]
        raise DataError(
            f"{scheme}:// needs the package {package}: pip install {package}"
        ) from error
