"""Rows of scores.jsonl: a number never stands without its N and its protocol."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from t2i_hpc.common.files import append_json_line, read_json_lines
from t2i_hpc.metrics.detectors.base import Detector
from t2i_hpc.metrics.protocol import Protocol

FILE_NAME = "scores.jsonl"
FEW_IMAGES = 10_000
# Convolutions on another number of CPU threads, or on GPUs of one model, agree this far.
_SAME = 1e-6
_IDENTITY = ("images", "metric", "protocol", "checkpoint")


def score_row(
    value: float, protocol: Protocol, detector: Detector, *, checkpoint: str, images_seen: int
) -> dict[str, Any]:
    """Return one row of scores.jsonl.

    Args:
        value: the distance; lower is better.
        protocol: what it was measured with.
        detector: the feature network.
        checkpoint: SHA-256 of the checkpoint.
        images_seen: images that the checkpoint was trained on.
    """
    return {
        "images": images_seen,
        "metric": detector.metric_name,
        "value": value,
        "better": "lower",
        "n": protocol.images,
        "n_real": protocol.real_images,
        "protocol": protocol.hash,
        "protocol_text": protocol.as_dict(),
        "checkpoint": checkpoint,
        "detector_label": detector.label,
    }


def record_score(run: Path, row: dict[str, Any]) -> bool:
    """Append a row to the run's scores; return False where the same row is there already."""
    path = run / FILE_NAME
    for known in read_json_lines(path):
        same = all(known.get(name) == row[name] for name in _IDENTITY)
        if same and math.isclose(known.get("value", math.nan), row["value"], rel_tol=_SAME):
            return False
    append_json_line(path, row)
    return True


def score_line(row: dict[str, Any]) -> str:
    """Return the line that people read."""
    return (
        f"{row['metric']} {row['value']:.4f} after {row['images']:,} images  "
        f"[N {row['n']:,}, N real {row['n_real']:,}, protocol {row['protocol']}, "
        f"{row['detector_label']}]"
    )


def few_images_warning(images: int) -> str | None:
    """Return a warning where the number of images is too small to publish, else None."""
    if images >= FEW_IMAGES:
        return None
    return (
        f"N = {images:,} is small: the distance is biased upwards, and scores of different N are "
        "not comparable"
    )
