"""Manifest, tables and vocabulary of a split on a server, fetched to the node.

The manifest is fetched at every start, so what changed on the server is noticed; the tables
are kept under the manifest's hash, which vouches for them, and fetched once a node. They are
not counted in the cache's limit, since workers map them at any time.
"""

from __future__ import annotations

import hashlib
import io
import os
import shutil
from pathlib import Path

import numpy as np

from t2i_hpc.common.errors import DataError
from t2i_hpc.common.files import fsync_folder, write_bytes
from t2i_hpc.data.captions import Vocabulary
from t2i_hpc.data.manifest import MANIFEST, VOCABULARY, Manifest
from t2i_hpc.data.storage.cache import Beat, Cache
from t2i_hpc.data.storage.server import BLOCK, Server
from t2i_hpc.data.storage.urls import join, shown
from t2i_hpc.data.tables import INDEX, SHARDS


def fetch_manifest(address: str, server: Server, cache: Cache) -> Manifest:
    """Return the manifest of the split at `address`, its tables compared and kept on the node.

    Raises:
        DataError: it cannot be had or is damaged.
    """
    content = server.json(join(address, MANIFEST))
    digest = hashlib.sha256(content).hexdigest()
    folder = cache.folder / "tables" / digest
    with cache.locked(digest) as beat:
        if (kept := _kept(folder, address)) is not None:
            return kept
        shutil.rmtree(folder, ignore_errors=True)
        for last in (False, True):
            try:
                _fetch_tables(address, content, folder, server, beat)
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


def _fetch_tables(address: str, content: bytes, folder: Path, server: Server, beat: Beat) -> None:
    """Fetch both tables beside the manifest and compare every row before they count."""
    part = folder.with_suffix(".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    try:
        write_bytes(part / MANIFEST, content)
        for name in (SHARDS, INDEX):
            _fetch_table(join(address, name), part / name, server, beat)
        manifest = Manifest.load(part, address)
        for number in range(manifest.shard_count):
            manifest.rows(number)
        fsync_folder(part)
        part.replace(folder)
        fsync_folder(folder.parent)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _fetch_table(address: str, path: Path, server: Server, beat: Beat) -> None:
    """Fetch a table, whose first bytes say how long it is."""
    content = server.head(address, BLOCK)
    size = _table_bytes(content, address)
    done = 0
    with path.open("wb") as stream:
        while True:
            stream.write(content[: size - done])
            done += len(content)
            beat()
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
