"""What a person wants to know of a run's checkpoints: which there are, and what is in them."""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from pathlib import Path

from torch import Tensor

from t2i_hpc.common.errors import ConfigurationError, RunError, nearest
from t2i_hpc.common.run_layout import list_checkpoints
from t2i_hpc.engine.checkpoints.checkpoint import Checkpoint, look_at, open_checkpoint
from t2i_hpc.engine.checkpoints.keeping import Score, ranking

_TITLES = ("images", "step", "size", "age", "ranks", "engine", "score")
_NUMBERS = 5  # columns that are set flush right


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
    widths = [max(len(row[column]) for row in rows) for column in range(len(_TITLES))]
    return [
        "  ".join(
            cell.rjust(width) if column < _NUMBERS else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def check_all(run: Path) -> Iterator[tuple[int, str | None]]:
    """Verify each checkpoint; yield its number of images and what is wrong with it, if anything."""
    for images in list_checkpoints(run):
        try:
            open_checkpoint(run, images)
        except RunError as error:
            yield images, str(error)
        else:
            yield images, None


def networks_of(checkpoint: Checkpoint, what: str) -> dict[str, Tensor]:
    """Return the tensors of one network by its own names, or of all by the checkpoint's.

    Raises:
        ConfigurationError: the checkpoint has no such network.
    """
    tensors = checkpoint.tensors()
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


def _row(run: Path, images: int, scored: tuple[Score, int] | None) -> tuple[str, ...]:
    try:
        checkpoint = look_at(run, images)
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
