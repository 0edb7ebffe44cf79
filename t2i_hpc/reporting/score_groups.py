"""Numbers as people read them.

Scores grouped by what may be compared: same metric, same protocol, same N.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from t2i_hpc.evaluation.scores import scale_of

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


FEW_IMAGES = 10_000
_FRECHET = re.compile(r"\bFI?D\b")  # FID, clean FID, FD (…), but not KID


@dataclass(frozen=True)
class Score:
    """One value after so many training images, with its error bar where there is one."""

    images: int
    value: float
    checkpoint: str
    std: float | None = None


@dataclass(frozen=True)
class ScoreCurve:
    """Scores that may be compared with each other.

    Attributes:
        metric: what is measured, e.g. "FID".
        n: generated images; n_real: real images.
        protocol: hash of the protocol; name: its name; text: its settings.
        detector: one line about the feature network, empty if unknown.
        lower_is_better: direction.
        scores: one a checkpoint, in the order of training; a repeated one counts as measured last.
    """

    metric: str
    n: int
    n_real: int
    protocol: str
    name: str
    text: Mapping[str, Any]
    detector: str
    lower_is_better: bool
    scores: list[Score]

    @property
    def best(self) -> Score:
        """The best score; of equal ones the earliest."""
        sign = 1 if self.lower_is_better else -1
        return min(self.scores, key=lambda score: (sign * score.value, score.images))

    @property
    def caution(self) -> str:
        """What a reader must know before comparing the number with another one."""
        sentences = ["Comparable only with scores of the same N and protocol."]
        if self.metric.startswith("FD"):
            sentences.insert(
                0, "A distance in the features of another network than FID's: it is not FID and "
                "not comparable with published FID."
            )  # fmt: skip
        if self.n < FEW_IMAGES and _FRECHET.search(self.metric):
            sentences.append(f"N = {self.n:,} is small, which biases a distance upwards.")
        return " ".join(sentences)


def score_curves(rows: Iterable[Mapping[str, Any]]) -> list[ScoreCurve]:
    """Group rows of scores.jsonl; the group with the largest N comes first, then the newest."""
    groups: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for row in rows:
        if isinstance(row.get("value"), (int, float)) and math.isfinite(row["value"]):
            key = (row.get("metric"), row.get("protocol"), row.get("n"), row.get("n_real"))
            groups.setdefault(key, []).append(row)
    curves = [_curve(group) for group in reversed(groups.values())]
    return sorted(curves, key=lambda curve: -curve.n)


def _curve(rows: list[Mapping[str, Any]]) -> ScoreCurve:
    last = rows[-1]
    # Files that were exported do not say their age: the weights tell them apart.
    scores = {(row.get("images", 0), row.get("checkpoint", "")): _score(row) for row in rows}
    return ScoreCurve(
        metric=str(last.get("metric", "score")),
        n=int(last.get("n") or 0),
        n_real=int(last.get("n_real") or 0),
        protocol=str(last.get("protocol", "")),
        name=str(last.get("protocol_name", "")),
        text=last.get("protocol_text") or {},
        detector=str(last.get("detector_label", "")),
        lower_is_better=last.get("better", "lower") == "lower",
        scores=sorted(scores.values(), key=lambda score: score.images),
    )


def _score(row: Mapping[str, Any]) -> Score:
    return Score(row.get("images", 0), row["value"], row.get("checkpoint", ""), row.get("std"))
