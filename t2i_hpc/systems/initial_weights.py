"""Whether systems read the files of initial weights that their configuration names.

A checkpoint holds the weights of every network, frozen ones too. Whoever builds a system in
order to load one needs none of those files, so a run works where they are gone: moved to
another machine, archived, or shared without its pre-trained encoders.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_FROM_CHECKPOINT: ContextVar[bool] = ContextVar("weights come from a checkpoint", default=False)


@contextmanager
def checkpoint_follows() -> Iterator[None]:
    """Build systems without reading initial weights: a checkpoint will overwrite them all."""
    token = _FROM_CHECKPOINT.set(True)
    try:
        yield
    finally:
        _FROM_CHECKPOINT.reset(token)


def reads_initial_weights() -> bool:
    """Whether initial weights must be read from their files."""
    return not _FROM_CHECKPOINT.get()
