"""The process group that DeepSpeed's tests leave behind, hidden from tests that need none.

DeepSpeed wants a group even of one process and keeps it for good, so such a test ends none.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch.distributed.distributed_c10d as c10d

_TABLES = (
    "_pg_map",
    "_pg_names",
    "_pg_group_ranks",
    "_pg_backend_config",
    "_tags_to_pg",
    "_pg_to_tag",
)


@contextmanager
def without_group() -> Iterator[None]:
    """Let this process be of no group within the block, and of its old one after it."""
    internals: Any = c10d
    default, count = internals._world.default_pg, internals._group_count
    kept = {name: dict(getattr(internals, name)) for name in _TABLES}
    for name in _TABLES:
        getattr(internals, name).clear()
    internals._world.default_pg = None
    try:
        yield
    finally:
        for name, table in kept.items():
            getattr(internals, name).clear()
            getattr(internals, name).update(table)
        internals._world.default_pg, internals._group_count = default, count
