"""The unit in which a score is printed; files hold shares of 1.

Rows of scores.jsonl: a number never stands without its N and its protocol.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from t2i_hpc.common.files import append_json_line

if TYPE_CHECKING:  # who only reads scores imports no torch
    from t2i_hpc.evaluation.detectors.detector import DetectorIdentity
    from t2i_hpc.evaluation.metrics import Value
    from t2i_hpc.evaluation.protocol import Protocol

_IN_PERCENT = "R-precision"  # as the literature states it


def scale_of(metric: str) -> tuple[float, str]:
    """Return what a metric's value is multiplied by for people, and the unit behind it."""
    return (100.0, " %") if metric.startswith(_IN_PERCENT) else (1.0, "")


FILE_NAME = "scores.jsonl"
FEW_IMAGES = 10_000
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
    return {
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
        "detector_label": detector.label,
        "made_with": list(made_with),
    }


def record_score(run: Path, row: dict[str, Any]) -> bool:
    """Append a row to the run's scores; return False where the same row is there already."""

    def is_same(known: dict[str, Any]) -> bool:
        same = all(known.get(name) == row[name] for name in _IDENTITY)
        return same and math.isclose(known.get("value", math.nan), row["value"], rel_tol=_SAME)

    # Two merges may end in the same second: who looks also writes, under one lock.
    return append_json_line(run / FILE_NAME, row, unless=is_same)


def score_line(row: dict[str, Any]) -> str:
    """Return the line that people read."""
    scale, unit = scale_of(row["metric"])
    bar = "" if row["std"] is None else f" ± {row['std'] * scale:.4f}"
    real = f", N real {row['n_real']:,}" if row["n_real"] else ""
    where = f" after {row['images']:,} images" if row["images"] else ""
    return (
        f"{row['metric']} {row['value'] * scale:.4f}{bar}{unit}{where}  "
        f"[N {row['n']:,}{real}, protocol {row['protocol_name']} {row['protocol']}, "
        f"{row['detector_label']}]"
    )


def few_images_warning(protocol: Protocol) -> str | None:
    """Return a warning where there are too few images on a side to publish, else None."""
    sides = (("N", protocol.images), ("N real", protocol.real_images))
    few = [f"{name} = {count:,}" for name, count in sides if count < FEW_IMAGES]
    if not few:
        return None
    return (
        f"{' and '.join(few)} {'is' if len(few) == 1 else 'are'} small: the Fréchet distance is "
        "biased upwards, and scores of different N are not comparable"
    )
