"""The storage that fits where a split lies and what the configuration asks for."""

from __future__ import annotations

import logging

from t2i_hpc.common.errors import ConfigurationError
from t2i_hpc.common.files import size_text
from t2i_hpc.config.data import DataConfig
from t2i_hpc.data.manifest import Manifest
from t2i_hpc.data.storage.cache import Cache
from t2i_hpc.data.storage.cached import CachedStorage
from t2i_hpc.data.storage.files import OPEN_FILES, LocalStorage
from t2i_hpc.data.storage.protocol import Storage
from t2i_hpc.data.storage.ranged import RangedStorage
from t2i_hpc.data.storage.server import Server
from t2i_hpc.data.storage.urls import is_remote


def open_storage(manifest: Manifest, config: DataConfig) -> Storage:
    """Return the storage of a split's shards.

    Raises:
        ConfigurationError: the cache is too small for a single shard.
        DataError: the cache's folder cannot be used.
    """
    if not is_remote(manifest.location, "data.path"):
        return LocalStorage(manifest, config.patience, shards_kept(config.shuffle_window))
    server = Server(config.patience)
    if config.remote_reads == "ranges":
        return RangedStorage(manifest, server)
    cache = open_cache(config)
    _check_room(manifest, config, cache)
    return CachedStorage(manifest, server, cache)


def shards_kept(window: int) -> int:
    """Return of how many shards rows and descriptors are kept: windows overlap at their seams."""
    return max(OPEN_FILES, 2 * window)


def open_cache(config: DataConfig) -> Cache:
    """Return the node's cache.

    Raises:
        DataError: its folder cannot be used.
    """
    return Cache(config.cache, int(config.cache_gigabytes * 1e9), config.patience)


def _check_room(manifest: Manifest, config: DataConfig, cache: Cache) -> None:
    largest = int(manifest.table["bytes"].max())
    if largest > cache.limit:
        raise ConfigurationError(
            f"data.cache_gigabytes={config.cache_gigabytes:g} is less than a shard of "
            f"{size_text(largest)}: raise it or take data.remote_reads=ranges"
        )
    window = min(config.shuffle_window, manifest.shard_count) * largest
    room = cache.room()
    if window > cache.limit:
        small, more = f"data.cache_gigabytes={config.cache_gigabytes:g} holds", "raise it"
    elif window > room:
        small = f"the disk of {cache.folder} has room for {size_text(room)} of shards, which is"
        more = "name a folder on a larger one with data.cache="
    else:
        return
    logging.getLogger(__name__).warning(
        "%s less than the %d shards that are shuffled together (%s): shards will be fetched again "
        "and again; %s, lower data.shuffle_window or take data.remote_reads=ranges",
        small,
        min(config.shuffle_window, manifest.shard_count),
        size_text(window),
        more,
    )
