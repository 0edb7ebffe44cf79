"""Settings that would have no effect are refused, in one form."""

from __future__ import annotations

from collections.abc import Mapping

from t2i_hpc.common.errors import ConfigurationError


def refuse_settings(given: Mapping[str, bool], why: str) -> None:
    """Refuse the first setting that is given.

    Args:
        given: whether it is, by the key below ``system.``.
        why: what is wrong with it and what to do, as the rest of a sentence.

    Raises:
        ConfigurationError: one is given.
    """
    for key, is_given in given.items():
        if is_given:
            raise ConfigurationError(f"system.{key} {why}")
