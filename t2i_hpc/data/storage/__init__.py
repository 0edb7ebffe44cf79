"""Where the bytes of shards come from: a folder, or a server by way of a node-local cache.

A split is read through :class:`local_shards.Storage` alone, so its reader knows nothing of servers.
Transient errors are retried for ``data.retry_seconds`` seconds, wherever they happen, and then
reported in one sentence.
"""
