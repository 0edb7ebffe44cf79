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
    _check_limit(manifest, config, cache.limit)
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


def _check_limit(manifest: Manifest, config: DataConfig, limit: int) -> None:
    largest = int(manifest.table["bytes"].max())
    if largest > limit:
        raise ConfigurationError(
            f"data.cache_gigabytes={config.cache_gigabytes:g} is less than a shard of "
            f"{size_text(largest)}: raise it or take data.remote_reads=ranges"
        )
    window = min(config.shuffle_window, manifest.shard_count) * largest
    if window > limit:
        logging.getLogger(__name__).warning(
            "data.cache_gigabytes=%g holds less than the %d shards that are shuffled together "
            "(%s): shards will be fetched again and again; raise it, lower "
            "data.shuffle_window or take data.remote_reads=ranges",
            config.cache_gigabytes,
            config.shuffle_window,
            size_text(window),
        )
