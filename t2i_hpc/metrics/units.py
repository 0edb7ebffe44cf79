"""The unit in which a score is printed; files hold shares of 1."""

from __future__ import annotations

_IN_PERCENT = "R-precision"  # as the literature states it


def scale_of(metric: str) -> tuple[float, str]:
    """Return what a metric's value is multiplied by for people, and the unit behind it."""
    return (100.0, " %") if metric.startswith(_IN_PERCENT) else (1.0, "")
