"""Splits on a server: its addresses, reads in ranges, copies of shards on the node.

The manifest is fetched at every start, so what changed on the server is noticed; the tables
are kept under the manifest's hash, which vouches for them, and fetched once a node. They are
not counted in the cache's limit, since workers map them at any time.

Files are read through fsspec, in ranges, each with a time limit and retried on its own: a server
that dies within a shard costs the range in flight. One that knows no ranges sends the whole file,
of which nothing is thrown away. A client of fsspec belongs to the process that made it, since a
fork leaves the thread of its event loop behind: each process makes its own when it first reads,
and keeps that of its parent untouched, whose connections it would close.

An address is data: what would run a command (``pipe:``) or open anything but the kinds of
server that are offered is refused by name.
"""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, TypeVar
from urllib.parse import urlsplit, urlunsplit

import numpy as np

from t2i_hpc.common.errors import DataError
from t2i_hpc.common.files import fsync_folder, write_bytes
from t2i_hpc.data.captions import Vocabulary
from t2i_hpc.data.format.manifest import (
    INDEX,
    MANIFEST,
    REBUILD,
    SHARDS,
    VOCABULARY,
    Manifest,
    Shard,
    shard_name,
)
from t2i_hpc.data.storage.cache import Cache, Heartbeat
from t2i_hpc.data.storage.local_shards import (
    ADVICE,
    is_permanent_here,
    read_whole,
)
from t2i_hpc.data.storage.retry import IncompleteError, RetryPolicy, scheme_of, shown

NEEDED = {"http": "aiohttp", "https": "aiohttp", "s3": "s3fs", "gs": "gcsfs"}
_OFFERED = "a folder or an address that begins with http://, https://, s3:// or gs://"
BLOCK = 4 << 20  # bytes asked for at once
_LONGEST_TRY = 30.0  # seconds for a block: 140 kB/s are enough
_LARGEST_JSON = 64 << 20  # bytes
_ADVICE = (
    "see whether the address is right and the server answers, then start the same command "
    "again; data.retry_seconds waits longer"
)
_Result = TypeVar("_Result")
_clients: dict[tuple[int, str], Any] = {}


class RangedStorage:
    """One request a sample; nothing is kept on the node."""

    def __init__(self, manifest: Manifest, server: Server) -> None:
        self._manifest, self._server, self.retry = manifest, server, server.retry

    def read(self, shard: int, offset: int, count: int) -> bytes:
        """Return exactly `count` bytes of a shard."""
        return self._server.read(self._address(shard), offset, count)

    def forget(self, shard: int) -> None:
        """Nothing is kept."""

    def name_of(self, shard: int) -> str:
        """Return the address of a shard, without secrets."""
        return shown(self._address(shard))

    def _address(self, shard: int) -> str:
        return join(self._manifest.location, shard_name(shard))


class CachedStorage(RangedStorage):
    """Reads from copies of whole shards; a copy that does not match its hash is never kept.

    A copy is open only during a read (opening takes microseconds on a node's disk): bytes of a
    deleted file stay on the disk for as long as some process has it open.
    """

    def __init__(self, manifest: Manifest, server: Server, cache: Cache) -> None:
        super().__init__(manifest, server)
        self._cache = cache
        self._latest: tuple[int, os.stat_result] | None = None  # shard and copy read last

    def read(self, shard: int, offset: int, count: int) -> bytes:
        """Return exactly `count` bytes of a shard."""
        return self.retry.attempt(
            self.name_of(shard),
            lambda _: self._read_once(shard, offset, count),
            ADVICE,
            is_permanent_here,
        )

    def forget(self, shard: int) -> None:
        """Remove the copy of a shard that was read last, so that it is fetched again."""
        if self._latest and self._latest[0] == shard:
            self._cache.drop(_copy_of(self._manifest.shard(shard)), self._latest[1])

    def _read_once(self, number: int, offset: int, count: int) -> bytes:
        shard = self._manifest.shard(number)

        def fetch(stream: IO[bytes], heartbeat: Heartbeat) -> None:
            self._fetch(shard, stream, heartbeat)

        descriptor = self._cache.open(_copy_of(shard), shard.bytes, fetch)
        try:
            self._latest = number, os.fstat(descriptor)
            return read_whole(descriptor, offset, count)
        finally:
            os.close(descriptor)

    def _fetch(self, shard: Shard, stream: IO[bytes], heartbeat: Heartbeat) -> None:
        """Write a shard, twice if the first copy is damaged."""
        name = self.name_of(shard.number)
        for _ in range(2):
            stream.seek(0)
            if self._copy(shard, stream, heartbeat) == shard.sha256:
                return
            logging.getLogger(__name__).warning("%s arrived with another SHA-256", name)
        raise DataError(
            f"{name} has changed since the manifest was written (its SHA-256 differs, fetched "
            f"twice); {REBUILD}"
        )

    def _copy(self, shard: Shard, stream: IO[bytes], heartbeat: Heartbeat) -> str:
        """Write a shard and return the SHA-256 of what was written."""
        digest, done = hashlib.sha256(), 0
        while done < shard.bytes:
            left = shard.bytes - done
            content = self._server.read_on(self._address(shard.number), done, min(BLOCK, left))
            content = content[:left]
            stream.write(content)
            digest.update(content)
            done += len(content)
            heartbeat()
        return digest.hexdigest()


def _copy_of(shard: Shard) -> str:
    return f"{shard.sha256}.tar"


def fetch_manifest(address: str, server: Server, cache: Cache) -> Manifest:
    """Return the manifest of the split at `address`, its tables compared and kept on the node.

    Raises:
        DataError: it cannot be had or is damaged.
    """
    content = server.json(join(address, MANIFEST))
    digest = hashlib.sha256(content).hexdigest()
    folder = cache.folder / "tables" / digest
    with cache.locked(digest) as heartbeat:
        if (kept := _kept(folder, address)) is not None:
            return kept
        shutil.rmtree(folder, ignore_errors=True)
        for last in (False, True):
            try:
                _fetch_tables(address, content, folder, server, heartbeat)
                break
            except DataError as error:
                if last:
                    raise DataError(f"the split {shown(address)} is damaged: {error}") from error
    return Manifest.load(folder, address)


def fetch_vocabulary(address: str, server: Server, cache: Cache) -> Vocabulary:
    """Return the vocabulary of the data set at `address`.

    Raises:
        DataError: it cannot be had or is damaged.
    """
    content = server.json(join(address, VOCABULARY))
    path = cache.folder / "tables" / f"{hashlib.sha256(content).hexdigest()}.json"
    write_bytes(path, content)
    return Vocabulary.load(path)


def _kept(folder: Path, address: str) -> Manifest | None:
    """Return the manifest whose tables are here, None if they are not or are damaged."""
    try:
        return Manifest.load(folder, address)
    except DataError:
        return None


def _fetch_tables(
    address: str, content: bytes, folder: Path, server: Server, heartbeat: Heartbeat
) -> None:
    """Fetch both tables beside the manifest and compare every row before they count."""
    part = folder.with_suffix(".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    try:
        write_bytes(part / MANIFEST, content)
        for name in (SHARDS, INDEX):
            _fetch_table(join(address, name), part / name, server, heartbeat)
        manifest = Manifest.load(part, address)
        for number in range(manifest.shard_count):
            manifest.rows(number)
        fsync_folder(part)
        part.replace(folder)
        fsync_folder(folder.parent)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _fetch_table(address: str, path: Path, server: Server, heartbeat: Heartbeat) -> None:
    """Fetch a table, whose first bytes give its length."""
    content = server.head(address, BLOCK)
    size = _table_bytes(content, address)
    done = 0
    with path.open("wb") as stream:
        while True:
            stream.write(content[: size - done])
            done += len(content)
            heartbeat()
            if done >= size:
                break
            content = server.read_on(address, done, min(BLOCK, size - done))
        stream.flush()
        os.fsync(stream.fileno())


def _table_bytes(head: bytes, address: str) -> int:
    """Return the length of an .npy file from its first bytes."""
    stream = io.BytesIO(head)
    try:
        version = np.lib.format.read_magic(stream)
        read = np.lib.format.read_array_header_1_0
        if version != (1, 0):
            read = np.lib.format.read_array_header_2_0
        shape, _, kind = read(stream)
    except Exception as error:  # NumPy's parser raises anything on damaged bytes
        raise DataError(f"{shown(address)} is no table ({error}); build the split again") from error
    return stream.tell() + int(np.prod(shape, dtype=np.int64)) * kind.itemsize


# --- the server


class Server:
    """Reads of files on any server that is offered.

    Args:
        retry_seconds: for which a failing read is tried again.
    """

    def __init__(self, retry_seconds: float) -> None:
        self.retry = RetryPolicy(retry_seconds)

    def read(self, address: str, start: int, count: int) -> bytes:
        """Return exactly `count` bytes from `start` on.

        Raises:
            DataError: they cannot be read.
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
                raise IncompleteError("the server does not give its length")
            return int(size)

        return self._attempt(address, asked)

    def _attempt(self, address: str, action: Callable[[float], _Result]) -> _Result:
        return self.retry.attempt(shown(address), action, _ADVICE)


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


def join(address: str, *names: str) -> str:
    """Return the address of a file in a folder; a query, such as a signature, stays behind it."""
    if not scheme_of(address).startswith("http"):
        return "/".join([address.rstrip("/"), *names])
    parts = urlsplit(address)
    return urlunsplit(parts._replace(path="/".join([parts.path.rstrip("/"), *names])))
