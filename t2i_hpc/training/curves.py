"""The run's curves: metrics.jsonl (the truth) and TensorBoard (the same numbers)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from t2i_hpc.common.files import append_json_line, read_json_lines, write_text
from t2i_hpc.runs.checkpoint import Progress


class Records:
    """Appends to a run's curves, starting from a checkpoint.

    Lines after the checkpoint, from a session that was cut off, are taken away first: those
    steps are about to happen again.
    """

    def __init__(self, run: Path, start: Progress) -> None:
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
        progress: Progress,
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
