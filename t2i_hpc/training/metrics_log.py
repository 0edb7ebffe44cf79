"""What a training measures of itself: speed, waiting, memory; and the curves of a run.

``metrics.jsonl`` is the truth; TensorBoard shows the same numbers.
"""

from __future__ import annotations

import json
import resource
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TypeVar

import torch

from t2i_hpc.common.files import append_json_line, read_json_lines, write_text
from t2i_hpc.runs.checkpoint import TrainingProgress

_T = TypeVar("_T")


class Meter:
    """Speed and share of waiting since it was last read."""

    def __init__(self, batch_size: int) -> None:
        self.batch_size = batch_size
        self._mark = self._start = time.monotonic()
        self._waited = 0.0
        self._steps = 0

    def timed(self, batches: Iterator[_T]) -> Iterator[_T]:
        """Pass batches on; count the time that each was waited for."""
        while True:
            start = time.monotonic()
            batch = next(batches, None)
            if batch is None:
                return
            self._waited += time.monotonic() - start
            yield batch

    def step_done(self) -> float:
        """Count a step; return the seconds since the one before."""
        now = time.monotonic()
        seconds, self._mark = now - self._mark, now
        self._steps += 1
        return seconds

    def read(self) -> tuple[float, float]:
        """Return (images per second, share of waiting) and start anew."""
        elapsed = max(1e-9, time.monotonic() - self._start)
        result = self._steps * self.batch_size / elapsed, min(1.0, self._waited / elapsed)
        self._start, self._waited, self._steps = time.monotonic(), 0.0, 0
        return result


def peak_memory(device: torch.device) -> float:
    """Return this process's largest memory so far in GB (10⁹ bytes).

    On a GPU that of all tensors together, else what was resident of the whole process.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


class MetricsLog:
    """Appends to a run's curves, starting from a checkpoint.

    Lines after the checkpoint, from a session that was cut off, are removed first: those steps
    are about to happen again.
    """

    def __init__(self, run: Path, start: TrainingProgress) -> None:
        self.path = run / "metrics.jsonl"
        rows = read_json_lines(self.path)
        kept = [row for row in rows if row.get("images", 0) <= start.images_seen]
        if len(kept) != len(rows):
            write_text(self.path, "".join(json.dumps(row, sort_keys=True) + "\n" for row in kept))
        from torch.utils.tensorboard import SummaryWriter  # slow to import

        self._board = SummaryWriter(str(run / "tensorboard"), purge_step=start.images_seen + 1)
        self._scores, self._shown = run / "scores.jsonl", len(read_json_lines(run / "scores.jsonl"))

    def add(
        self,
        progress: TrainingProgress,
        images_per_second: float,
        data_wait: float,
        memory: float,
        losses: Mapping[str, float],
    ) -> None:
        """Write one line and one point of each curve; the x axis counts images.

        `memory` is the largest so far of this session's first rank, in GB.
        """
        append_json_line(
            self.path,
            {
                "images": progress.images_seen,
                "step": progress.step,
                "seconds": round(progress.seconds, 3),
                "images_per_second": round(images_per_second, 3),
                "data_wait": round(data_wait, 4),
                "memory_gigabytes": round(memory, 4),
                "losses": dict(losses),
            },
        )
        for name, value in losses.items():
            self._board.add_scalar(name, value, progress.images_seen)
        self._board.add_scalar("speed/images_per_second", images_per_second, progress.images_seen)
        self.add_scores()

    def add_scores(self) -> None:
        """Add what evaluations have found meanwhile to the curves."""
        rows = read_json_lines(self._scores)
        for row in rows[self._shown :]:
            name = f"scores/{row['metric']} {row['protocol']}"
            self._board.add_scalar(name, row["value"], row["images"])
        self._shown = len(rows)

    def close(self) -> None:
        """Flush what is buffered."""
        self._board.close()
