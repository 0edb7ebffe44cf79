"""Lists, verifies and exports the checkpoints of a run, and ranks them by their scores."""

from __future__ import annotations

import datetime
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from t2i_hpc.common.errors import ConfigurationError, RunError, nearest
from t2i_hpc.common.files import read_json_lines, write_bytes
from t2i_hpc.common.terminal import aligned, say
from t2i_hpc.config.tasks import CheckpointsConfig
from t2i_hpc.runs.checkpoint import (
    Checkpoint,
    choose_checkpoint,
    open_checkpoint,
    read_state,
    read_tensors,
)
from t2i_hpc.runs.layout import damaged_checkpoints, list_checkpoints

_TITLES = ("images", "step", "size", "age", "ranks", "engine", "score")
_NUMBERS = 5  # columns that are set flush right


def show(folder: Path, metric: str) -> None:
    """Print a table of the checkpoints; their tensors are not read.

    Args:
        folder: the run directory.
        metric: what the name of the scored metric begins with; empty: any.
    """
    say("\n".join(table(folder, metric)))
    for path in damaged_checkpoints(folder):
        say(f"{path.name}: was found damaged and set aside")


def verify(folder: Path) -> None:
    """Read every checkpoint again and print of each whether it is what was written.

    Raises:
        RunError: one or more are not, or there is none.
    """
    there, bad = list_checkpoints(folder), list[str]()
    for images in there:
        try:
            open_checkpoint(folder, images)
            say(f"{images:,} images: all right")
        except RunError as error:
            say(error)
            bad.append(f"{images:,}")
    if not there:
        raise RunError(f"{folder} has no checkpoint to verify: train it first")
    if bad:
        raise RunError(
            f"{len(bad)} of {len(there)} checkpoints of {folder} cannot be used "
            f"({', '.join(bad)} images): training sets damaged ones aside and resumes from the "
            "newest good one"
        )


def export(folder: Path, config: CheckpointsConfig) -> None:
    """Write networks of a checkpoint as one file, whole or not at all.

    Raises:
        UserError: the file exists or has another ending, or there is no such network.
    """
    from safetensors.torch import save

    from t2i_hpc.data.captions import VOCABULARY_NOTE

    output = Path(config.output)
    if output.suffix != ".safetensors":
        raise ConfigurationError(f"output={config.output} is no .safetensors file: name one")
    if output.exists():
        raise ConfigurationError(
            f"output={output} is there already: name another file, or delete it first"
        )
    checkpoint = choose_checkpoint(folder, config.checkpoint)
    tensors = networks_of(checkpoint, config.what)
    notes = {"format": "pt", "run": folder.resolve().name, "what": config.what}
    notes |= {VOCABULARY_NOTE: checkpoint.vocabulary} if checkpoint.vocabulary else {}
    write_bytes(output, save(tensors, notes | {"images": str(checkpoint.progress.images_seen)}))
    say(f"{output}: {len(tensors)} tensors after {checkpoint.progress.images_seen:,} images")


def networks_of(checkpoint: Checkpoint, what: str) -> dict[str, Tensor]:
    """Return the tensors of one network by its own names, or of all by the checkpoint's.

    Raises:
        ConfigurationError: the checkpoint has no such network.
    """
    tensors = read_tensors(*checkpoint.files)
    if what == "all":
        return tensors
    prefix = f"{what}."
    found = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
    if not found:
        names = {name.split(".")[0] for name in tensors} | {"all"}
        raise ConfigurationError(
            f"what={what} is not in {checkpoint.folder}: " + nearest(what, names)
        )
    return found


def table(run: Path, metric: str) -> list[str]:
    """Return the lines of a table of the checkpoints, oldest first; the best score has a *.

    Args:
        run: the run directory.
        metric: what the scored metric's name begins with; empty: any.
    """
    there = list_checkpoints(run)
    if not there:
        return [f"{run} has no checkpoint yet"]
    scores = {score.images: (score, rank) for rank, score in enumerate(ranking(run, metric))}
    rows = [_TITLES, *(_row(run, images, scores.get(images)) for images in there)]
    return aligned(rows, range(_NUMBERS))


def _row(run: Path, images: int, scored: tuple[Score, int] | None) -> tuple[str, ...]:
    try:
        checkpoint = read_state(run, images)
    except RunError as error:
        return f"{images:,}", "", "", "", "", "", str(error)
    origin = checkpoint.state["origin"]
    size = sum(file["bytes"] for file in checkpoint.state["files"].values())
    return (
        f"{images:,}",
        f"{checkpoint.progress.step:,}",
        f"{size / 1e6:,.1f} MB",
        _age(origin.get("time")),
        str(origin.get("world", "")),
        str(origin.get("engine", "")),
        _score(scored),
    )


def _score(scored: tuple[Score, int] | None) -> str:
    if scored is None:
        return ""
    score, rank = scored
    return f"{score.metric} {score.value:.4g}{' *' if rank == 0 else ''}"


def _age(text: str | None) -> str:
    if text is None:
        return ""
    written = datetime.datetime.fromisoformat(text)
    minutes = (datetime.datetime.now(datetime.timezone.utc) - written).total_seconds() / 60
    for size, unit in ((24 * 60, "d"), (60, "h")):
        if minutes >= size:
            return f"{minutes / size:.1f} {unit}"
    return f"{max(0.0, minutes):.0f} min"


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
    """Whether a score is of the weights that are there now, where it says of which it is."""
    try:
        return row.get("checkpoint", "") in ("", read_state(run, row["images"]).sha256)
    except RunError:
        return False
