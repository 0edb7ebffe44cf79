"""Libraries that say more than a person wants to read."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from importlib import import_module


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers' reports to itself: what matters is said by a refusal."""
    logging = import_module("transformers.utils.logging")
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
