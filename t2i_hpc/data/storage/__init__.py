"""Where the bytes of shards come from: a folder, or a server by way of a node-local cache.

A split is read through :class:`Storage` alone, so what reads it knows nothing of servers. What
fails in passing is tried again for ``data.retry_seconds`` seconds, wherever it lies, and then told
in one sentence.
"""

from __future__ import annotations

from t2i_hpc.data.storage.local import LocalStorage, Storage
from t2i_hpc.data.storage.remote import CachedStorage, RangedStorage, open_storage, shards_kept

__all__ = [
    "CachedStorage",
    "LocalStorage",
    "RangedStorage",
    "Storage",
    "open_storage",
    "shards_kept",
]
