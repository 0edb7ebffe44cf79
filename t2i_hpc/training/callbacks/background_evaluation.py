"""Background evaluations: requested at checkpoints while a run trains, scored by other processes.

The checkpoint of a requested evaluation stays until its score is in scores.jsonl, from where the
score goes into the run's curves.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from t2i_hpc.common.files import append_json_line, read_json_lines
from t2i_hpc.runs.checkpoint import TrainingProgress
from t2i_hpc.runs.layout import list_checkpoints
from t2i_hpc.training.progress import RunOutput

_REQUESTED = "evaluations/asked.jsonl"
_WAITING = 4  # checkpoints that wait for a score at most, should evaluations fail


class Starter(Protocol):
    """Starts evaluations of a run's checkpoints."""

    def start(self, images: int) -> str:
        """Start or queue the evaluation of a checkpoint; return at once, with a line for people."""

    def busy(self) -> bool:
        """Whether evaluations are left that end with this process."""

    def close(self, say: Callable[[str], None]) -> None:
        """Say what failed, and end what still runs."""


class EvaluationRequests:
    """Requests evaluations while a run trains; first those that an earlier session left.

    Args:
        output: the run's directory and progress line.
        every_images: images between evaluations, at least 1.
        batch_size: images of a step.
        starter: starts them.
    """

    def __init__(
        self, output: RunOutput, every_images: int, batch_size: int, starter: Starter
    ) -> None:
        self._output, self._starter = output, starter
        self._every, self._batch_size = every_images, batch_size
        there = list_checkpoints(output.folder)
        for images in waiting_for_scores(output.folder):
            if images in there:
                output.line.say(starter.start(images))

    def due(self, progress: TrainingProgress) -> bool:
        """Whether the step that `progress` counts last is to be evaluated."""
        return progress.crossed(self._every, self._batch_size)

    def request(self, images: int) -> None:
        """Request the evaluation of a checkpoint that was written; the writer's thread calls it."""
        append_json_line(self._output.folder / _REQUESTED, {"images": images})
        self._output.line.say(self._starter.start(images))

    def busy(self) -> bool:
        """Whether a training that is done should wait."""
        return self._starter.busy()

    def close(self) -> None:
        """Leave what still runs to the next session."""
        self._starter.close(self._output.line.say)


def waiting_for_scores(run: Path) -> list[int]:
    """Return the newest checkpoints, by images, whose evaluation was requested and has no score."""
    scored = {row.get("images") for row in read_json_lines(run / "scores.jsonl")}
    requested = {row["images"] for row in read_json_lines(run / _REQUESTED)}
    return sorted(requested - scored)[-_WAITING:]
