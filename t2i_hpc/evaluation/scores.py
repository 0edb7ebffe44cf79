"""Scores: rows of ``scores.jsonl``, and those of a run that may be compared with each other.

A number never stands without its N and its protocol. Files hold shares of 1; people read
R-precision in per cent, as the literature states it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from t2i_hpc.common.files import append_json_line

if TYPE_CHECKING:  # reading scores imports no torch
    from t2i_hpc.evaluation.detectors.detector import DetectorIdentity
    from t2i_hpc.evaluation.metrics import Value
    from t2i_hpc.evaluation.protocol import Protocol

FILE_NAME = "scores.jsonl"
NEAREST, DIVERSITY = "nearest", "diversity"  # folders of a run for pictures that scores come with
FEW_IMAGES = 10_000
FLATTERS = "flatters it"  # in the label of a score by a network that the run was trained against
NOT_KNOWN = "not known, as others made the reference statistics"  # in a protocol
_IN_PERCENT = ("R-precision", "memorization")
_FRECHET = re.compile(r"\bFI?D\b(?!∞)")  # FID, clean FID, FD (…); neither KID nor FID∞
# Convolutions on another number of CPU threads, or on GPUs of one model, agree this far.
_SAME = 1e-6
_IDENTITY = ("images", "metric", "protocol", "checkpoint")


def score_row(
    score: Value,
    protocol: Protocol,
    detector: DetectorIdentity,
    *,
    name: str,
    checkpoint: str,
    images_seen: int,
    made_with: Sequence[Mapping[str, str]],
) -> dict[str, Any]:
    """Return one row of scores.jsonl.

    Args:
        score: the metric, its value and its error bar.
        protocol: what it was measured with.
        detector: the feature network.
        name: the protocol's name.
        checkpoint: SHA-256 of the checkpoint.
        images_seen: images that the checkpoint was trained on.
        made_with: versions and devices that the images went through.
    """
    row = {
        "images": images_seen,
        "metric": score.metric,
        "value": score.value,
        "std": score.std,
        "better": score.better,
        "n": protocol.images,
        "n_real": score.n_real,
        "protocol": protocol.hash_of(score.kind),
        "protocol_name": name,
        "protocol_text": protocol.text_of(score.kind),
        "checkpoint": checkpoint,
        "detector_label": detector.label_of(score.kind),
        "made_with": list(made_with),
    }
    if score.each:
        row["seeds"] = [protocol.seed + place for place in range(len(score.each))]
        row["values"] = list(score.each)
    if score.real:
        row["real_halves"] = dict(zip(("distance", "protocol"), score.real, strict=True))
    return row


def record_score(run: Path, row: dict[str, Any]) -> bool:
    """Append a row to the run's scores; return False where the same row is there already."""

    def is_same(known: dict[str, Any]) -> bool:
        same = all(known.get(name) == row[name] for name in _IDENTITY)
        return same and math.isclose(known.get("value", math.nan), row["value"], rel_tol=_SAME)

    # Two merges may end in the same second: reading and writing are under one lock.
    return append_json_line(run / FILE_NAME, row, unless=is_same)


@dataclass(frozen=True)
class Score:
    """One value after so many training images.

    Attributes:
        images, value, checkpoint: what was measured of which weights.
        std: error bar, None where there is none.
        real: of a Fréchet distance, the distance of real images from other real ones.
        flattered: whether the run was trained against the network that measured.
    """

    images: int
    value: float
    checkpoint: str
    std: float | None = None
    real: float | None = None
    flattered: bool = False

    @property
    def over_real(self) -> float | None:
        """A Fréchet distance over that of real images from other real ones."""
        return self.value / self.real if self.real else None


@dataclass(frozen=True)
class ScoreCurve:
    """Scores that may be compared with each other.

    Attributes:
        metric: what is measured, e.g. "FID".
        n: generated images; n_real: real images.
        protocol: hash of the protocol; name: its name; text: its settings.
        detector: one line about the feature network, empty if unknown.
        lower_is_better: direction.
        scores: one a checkpoint, in the order of training; of a repeated one the last.
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
        if self.text.get("seeds"):
            sentences.append(
                f"± is the standard deviation over {self.text['seeds']} drawing seeds."
            )
        if self.n < FEW_IMAGES and _FRECHET.search(self.metric):
            sentences.append(f"N = {self.n:,} is small, which biases a distance upwards.")
        return " ".join(sentences)


def score_curves(rows: Iterable[Mapping[str, Any]]) -> list[ScoreCurve]:
    """Group rows by metric, protocol and N; the largest N comes first, then the newest."""
    groups: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for row in rows:
        if isinstance(row.get("value"), (int, float)) and math.isfinite(row["value"]):
            key = (row.get("metric"), row.get("protocol"), row.get("n"), row.get("n_real"))
            groups.setdefault(key, []).append(row)
    curves = [_curve(group) for group in reversed(groups.values())]
    return sorted(curves, key=lambda curve: -curve.n)


def _curve(rows: list[Mapping[str, Any]]) -> ScoreCurve:
    last = rows[-1]
    # Exported files do not say how long they were trained: the weights tell them apart.
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
    halves = row.get("real_halves")
    real = halves.get("distance") if isinstance(halves, Mapping) else None
    images, checkpoint = row.get("images", 0), row.get("checkpoint", "")
    flattered = FLATTERS in str(row.get("detector_label", ""))
    return Score(images, row["value"], checkpoint, row.get("std"), real, flattered)


def scale_of(metric: str) -> tuple[float, str]:
    """Return what a metric's value is multiplied by for people, and the unit behind it."""
    return (100.0, " %") if metric.startswith(_IN_PERCENT) else (1.0, "")


def score_text(value: float) -> str:
    """Return a score with four significant digits or one decimal: 33.1, 0.04213."""
    return f"{value:.1f}" if abs(value) >= 100 else f"{value:.4g}"


def measured(metric: str, value: float, bar: float | None = None) -> str:
    """Return a metric's score in its unit, with its error bar where it has one."""
    scale, unit = scale_of(metric)
    error = "" if bar is None else f" ± {score_text(bar * scale)}"
    return f"{score_text(value * scale)}{error}{unit}"


def beside_real(over_real: float | None) -> str:
    """Return how many times the distance of real images a Fréchet distance is, in words."""
    return "" if over_real is None else f" ({over_real:.3g} x real halves)"


def score_line(row: dict[str, Any]) -> str:
    """Return the line about a row that `evaluate` prints."""
    scale, unit = scale_of(row["metric"])
    bar = "" if row["std"] is None else f" ± {row['std'] * scale:.4f}"
    real = f", N real {row['n_real']:,}" if row["n_real"] else ""
    if not row["n_real"] and row["protocol_text"].get("selection") == NOT_KNOWN:
        real = ", N real not known"
    where = beside_real(_score(row).over_real)
    where += f" after {row['images']:,} images" if row["images"] else ""
    return (
        f"{row['metric']} {row['value'] * scale:.4f}{bar}{unit}{where}  "
        f"[N {row['n']:,}{real}, protocol {row['protocol_name']} {row['protocol']}, "
        f"{row['detector_label']}]"
    )


def few_images_warning(protocol: Protocol) -> str | None:
    """Return a warning where there are too few images to publish a Fréchet distance, else None."""
    counts = (("N", protocol.images), ("N real", protocol.real_images))
    # 0: others wrote the real images' statistics, and not of how many they are.
    few = [f"{name} = {count:,}" for name, count in counts if 0 < count < FEW_IMAGES]
    if not few:
        return None
    return (
        f"{' and '.join(few)} {'is' if len(few) == 1 else 'are'} small: the Fréchet distance is "
        "biased upwards, and scores of different N are not comparable"
    )
