"""Evaluations beside the training: asked for at checkpoints, scored by other processes.

The checkpoint that an evaluation was asked for stays until its score stands in scores.jsonl, from
where the score goes into the run's curves. How an evaluation is started is not the engine's affair.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from t2i_hpc.common.files import append_json_line, read_json_lines
from t2i_hpc.runs.checkpoint import Progress
from t2i_hpc.runs.layout import list_checkpoints
from t2i_hpc.training.progress import RunFiles

_ASKED = "evaluations/asked.jsonl"
_WAITING = 4  # checkpoints that wait for a score at most, should evaluations fail


class Starter(Protocol):
    """Starts evaluations of a run's checkpoints."""

    def start(self, images: int) -> str:
        """See to the evaluation of a checkpoint; return at once, with a line for people."""

    def busy(self) -> bool:
        """Whether there is something left that this process itself has to see to the end."""

    def close(self, say: Callable[[str], None]) -> None:
        """Tell of what failed, and end what is still under way."""


class Evaluations:
    """When a run is evaluated while it trains; those of an earlier session are caught up on.

    Args:
        run: its directory and progress line.
        every_images: images between evaluations, at least 1.
        batch_size: images of a step.
        starter: starts them.
    """

    def __init__(self, run: RunFiles, every_images: int, batch_size: int, starter: Starter) -> None:
        self._run, self._starter = run, starter
        self._every, self._batch_size = every_images, batch_size
        there = list_checkpoints(run.folder)
        for images in waiting_for_scores(run.folder):
            if images in there:
                run.line.say(starter.start(images))

    def due(self, progress: Progress) -> bool:
        """Whether the step that `progress` counts last is to be evaluated."""
        return progress.crossed(self._every, self._batch_size)

    def ask(self, images: int) -> None:
        """Ask for the evaluation of a checkpoint that was written; called beside the training."""
        append_json_line(self._run.folder / _ASKED, {"images": images})
        self._run.line.say(self._starter.start(images))

    def busy(self) -> bool:
        """Whether a training that is done should wait."""
        return self._starter.busy()

    def close(self) -> None:
        """Leave what is under way to the next session."""
        self._starter.close(self._run.line.say)


def waiting_for_scores(run: Path) -> list[int]:
    """Return the newest checkpoints, by images, whose evaluation was asked for and is not there."""
    scored = {row.get("images") for row in read_json_lines(run / "scores.jsonl")}
    asked = {row["images"] for row in read_json_lines(run / _ASKED)}
    return sorted(asked - scored)[-_WAITING:]
