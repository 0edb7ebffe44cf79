"""Numbers as people read them."""

from __future__ import annotations

from t2i_hpc.metrics.units import scale_of

_UNITS = ((1e9, "G"), (1e6, "M"), (1e3, "k"))


def short(value: float) -> str:
    """Return a number for an axis: 12.5k, 3M, 0.04."""
    for size, unit in _UNITS:
        if abs(value) >= size:
            return f"{value / size:.6g}{unit}"
    return f"{value:.6g}"


def score(value: float) -> str:
    """Return a score with four significant digits or one decimal: 33.1, 0.04213."""
    return f"{value:.1f}" if abs(value) >= 100 else f"{value:.4g}"


def measured(metric: str, value: float, bar: float | None = None) -> str:
    """Return a metric's score in its unit, with its error bar where it has one."""
    scale, unit = scale_of(metric)
    error = "" if bar is None else f" ± {score(bar * scale)}"
    return f"{score(value * scale)}{error}{unit}"


def duration(seconds: float) -> str:
    """Return a time in its two largest units: 2 d 3 h, 1 h 23 min, 45 s."""
    whole = int(seconds)
    parts = [(whole // 86400, "d"), (whole // 3600 % 24, "h"), (whole // 60 % 60, "min")]
    parts.append((whole % 60, "s"))
    first = next((place for place, (count, _) in enumerate(parts) if count), len(parts) - 1)
    return " ".join(f"{count} {unit}" for count, unit in parts[first : first + 2] if count) or "0 s"
