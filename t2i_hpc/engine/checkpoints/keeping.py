"""Which checkpoints stay: the newest, the best by score, and one in so many images."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from t2i_hpc.common.errors import RunError
from t2i_hpc.common.files import read_json_lines
from t2i_hpc.common.run_layout import folder_of, list_checkpoints
from t2i_hpc.config.engine import CheckpointConfig
from t2i_hpc.engine.checkpoints.checkpoint import look_at
from t2i_hpc.engine.checkpoints.folders import remove
from t2i_hpc.engine.evaluations import waiting_for_scores


@dataclass(frozen=True)
class Score:
    """What the checkpoint of so many images scored."""

    images: int
    metric: str
    value: float
    lower_is_better: bool

    @property
    def cost(self) -> float:
        """The value, turned so that less of it is better."""
        return self.value if self.lower_is_better else -self.value


def prune_checkpoints(run: Path, config: CheckpointConfig) -> None:
    """Delete all checkpoints but those that the configuration keeps.

    Of `milestones` the first that reaches each multiple stays. What waits for its score, stays.
    """
    there = list_checkpoints(run)
    kept = set(there[-config.keep :])
    if config.milestones:
        periods = {images // config.milestones for images in there}
        kept |= {min(n for n in there if n // config.milestones == k) for k in periods}
    if config.keep_best:
        kept |= {score.images for score in ranking(run, config.best_metric)[: config.keep_best]}
    kept |= set(waiting_for_scores(run))
    for images in there:
        if images not in kept:
            remove(folder_of(run, images))


def ranking(run: Path, metric: str = "") -> list[Score]:
    """Return the scores of the checkpoints that are there, best first.

    Only scores of one metric, protocol and number of images can be compared: of what begins
    with `metric`, those of the largest number of images, and the newest of these, count.
    """
    rows = [row for row in read_json_lines(run / "scores.jsonl") if _counts(row, metric)]
    if not rows:
        return []
    leading = max(reversed(rows), key=lambda row: row.get("n") or 0)
    there = set(list_checkpoints(run))
    scores = {
        row["images"]: Score(
            row["images"], row["metric"], row["value"], row.get("better", "lower") == "lower"
        )
        for row in rows
        if _kind(row) == _kind(leading) and row["images"] in there and _is_of(row, run)
    }
    return sorted(scores.values(), key=lambda score: (score.cost, score.images))


def _counts(row: Any, metric: str) -> bool:
    """Whether a line is a score of a metric at all."""
    if not isinstance(row, dict):
        return False
    value, images, name = row.get("value"), row.get("images"), row.get("metric")
    if not (isinstance(images, int) and isinstance(name, str) and isinstance(value, (int, float))):
        return False
    return math.isfinite(value) and name.startswith(metric)


def _kind(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(row.get(name) for name in ("metric", "protocol", "n", "n_real"))


def _is_of(row: Mapping[str, Any], run: Path) -> bool:
    """Whether a score is of the weights that lie there now, where it says of which it is."""
    try:
        return row.get("checkpoint", "") in ("", look_at(run, row["images"]).sha256)
    except RunError:
        return False
