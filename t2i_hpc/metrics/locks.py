"""One process at a time: who asks for what another is computing waits and finds it done."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import IO

_LOG = logging.getLogger("t2i_hpc")
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EACCES)


@contextlib.contextmanager
def alone(path: Path) -> Iterator[None]:
    """Run the block while no other process runs one for the same `path`.

    The system gives the lock back when its holder dies. On a file system without locks nobody
    waits: the work is then done twice, each file being written whole or not at all.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(f".{path.name}.lock").open("ab") as stream:
        _take(stream, path)
        yield


def _take(stream: IO[bytes], path: Path) -> None:
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return
    except BlockingIOError:
        _LOG.info("%s: another process computes it, waiting", path)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        return
    fcntl.flock(stream, fcntl.LOCK_EX)
