"""Errors that a person can act on: one sentence with what, where and what to do.

Every error that a user can cause is a :class:`UserError`; the doors print its sentence and
leave with exit code 2, without a traceback. Anything else is a defect of the project and
keeps its traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

USER_ERROR_EXIT_CODE = 2


class UserError(Exception):
    """Something the user can put right; the message says what, where and what to do."""

    exit_code = USER_ERROR_EXIT_CODE


class ConfigurationError(UserError):
    """An unknown key, a value of the wrong type or out of its range."""


class DataError(UserError):
    """A folder, captions file, shard or manifest that cannot be used as it is."""


class RunError(UserError):
    """A run directory or checkpoint that is missing, damaged or of another kind."""


class EvaluationError(UserError):
    """Shards of an evaluation that do not fit together, or too few images."""


class ClusterError(UserError):
    """A batch system that is not there, refuses a job, or cannot run it as it is."""


def nearest(word: str, offered: Iterable[str], count: int = 3) -> str:
    """Return a clause such as ``did you mean 'a' or 'b'?`` naming the nearest of `offered`.

    Falls back to listing what is offered when nothing is similar.
    """
    candidates = sorted(set(offered))
    close = difflib.get_close_matches(word, candidates, n=count, cutoff=0.55)
    if close:
        return "did you mean " + " or ".join(repr(name) for name in close) + "?"
    return "offered: " + ", ".join(candidates)
