"""What a training measures of itself: speed, waiting, memory; and the curves of a run.

``metrics.jsonl`` is the truth; TensorBoard shows the same numbers.
"""

from __future__ import annotations

import json
import resource
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch

from t2i_hpc.cluster.hardware import recognize_card
from t2i_hpc.common.files import append_json_line, read_json_lines, write_text
from t2i_hpc.data.loader import ReadCounts
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


class ReadMeter:
    """What came from servers since it was last read.

    Args:
        reads: what was read since the loader started.
    """

    def __init__(self, reads: Callable[[], ReadCounts]) -> None:
        self._reads, self._before, self._start = reads, reads(), time.monotonic()

    def read(self) -> tuple[float | None, float]:
        """Return bytes a second and the share of samples whose shard was here; start anew.

        The bytes are None for as long as nothing has come from a server or its cache.
        """
        now, before, start = self._reads(), self._before, self._start
        self._before, self._start = now, time.monotonic()
        if not any(now):
            return None, 1.0
        samples = now.found - before.found + now.missed - before.missed
        share = (now.found - before.found) / samples if samples else 1.0
        return (now.bytes - before.bytes) / max(1e-9, self._start - start), share


def peak_memory(device: torch.device) -> float:
    """Return this process's largest memory so far in GB (10⁹ bytes).

    On a GPU that of all tensors together, else what was resident of the whole process.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


@dataclass(frozen=True)
class Arithmetic:
    """What training computes, and what a device can: gives TFLOP/s and MFU of a speed.

    Attributes:
        flops: floating-point operations of a step by its images; None where not counted.
        peak: FLOP/s of one device at its best; None where not known.
        devices: that train together.
    """

    flops: float | None = None
    peak: float | None = None
    devices: int = 1

    @classmethod
    def of(
        cls, flops: float | None, device: torch.device, precision: str, devices: int
    ) -> Arithmetic:
        """Return that of a device, whose peak is looked up by its name."""
        if device.type != "cuda":
            return cls(flops, None, devices)
        card = recognize_card(torch.cuda.get_device_name(device))
        return cls(flops, 1e12 * getattr(card, precision) if card else None, devices)

    def teraflops(self, images_per_second: float) -> float | None:
        """Return the TFLOP/s of each device; None where operations were not counted."""
        return None if self.flops is None else self.flops * images_per_second / self.devices / 1e12

    def mfu(self, images_per_second: float) -> float | None:
        """Return model FLOP/s utilization, 0 to 1: the share of the peak; None if not known."""
        done = self.teraflops(images_per_second)
        return None if done is None or self.peak is None else 1e12 * done / self.peak


@dataclass(frozen=True)
class Measured:
    """What the steps since the line before were like.

    Attributes:
        losses: by ``phase/term``, of the last step.
        images_per_second: of all ranks together.
        data_wait: share of the time spent waiting for data, 0 to 1.
        memory: largest so far of this session's first rank, in GB.
        teraflops, mfu: of one device (see :class:`Arithmetic`); None where not known.
        milliseconds: of each part of a step on the first rank's device, of the steps that it has
            finished.
        gradient_norms: by ``phase/module``, of the last step, before a clip.
        learning_rates: by module, of the last step.
        samples: what was measured of the sample grids since the line before, by name.
        fetched: bytes a second that came from a server; None: nothing comes from one.
        found: share of the samples whose shard was on the node, 0 to 1.
    """

    losses: Mapping[str, float]
    images_per_second: float
    data_wait: float
    memory: float
    teraflops: float | None = None
    mfu: float | None = None
    milliseconds: Mapping[str, float] = field(default_factory=dict)
    gradient_norms: Mapping[str, float] = field(default_factory=dict)
    learning_rates: Mapping[str, float] = field(default_factory=dict)
    samples: Mapping[str, float] = field(default_factory=dict)
    fetched: float | None = None
    found: float = 1.0

    def row(self) -> dict[str, Any]:
        """Return it as a line of ``metrics.jsonl``; what is not known is left out."""
        row: dict[str, Any] = {
            "images_per_second": round(self.images_per_second, 3),
            "data_wait": round(self.data_wait, 4),
            "memory_gigabytes": round(self.memory, 4),
            "losses": dict(self.losses),
        }
        if self.teraflops is not None:
            row["teraflops_per_device"] = float(f"{self.teraflops:.4g}")
        if self.mfu is not None:
            row["mfu"] = round(self.mfu, 4)
        if self.fetched is not None:
            row["fetched_megabytes_per_second"] = round(self.fetched / 1e6, 3)
            row["cache_hits"] = round(self.found, 4)
        if self.milliseconds:
            row["milliseconds"] = {part: round(ms, 3) for part, ms in self.milliseconds.items()}
        if self.gradient_norms:
            row["gradient_norms"] = dict(self.gradient_norms)
        if self.learning_rates:
            row["learning_rates"] = dict(self.learning_rates)
        if self.samples:
            row["samples"] = dict(self.samples)
        return row

    def curves(self) -> Iterator[tuple[str, float]]:
        """Yield what TensorBoard shows, by the names of its curves."""
        yield from self.losses.items()
        yield "speed/images_per_second", self.images_per_second
        if self.mfu is not None:
            yield "speed/mfu", self.mfu
        for group, values in (
            ("milliseconds", self.milliseconds),
            ("gradient_norm", self.gradient_norms),
            ("learning_rate", self.learning_rates),
            ("samples", self.samples),
        ):
            for name, value in values.items():
                yield f"{group}/{name}", value


class _NoBoard:
    """What is shown where TensorBoard is left out: nothing."""

    def add_scalar(self, name: str, value: float, step: int) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


class MetricsLog:
    """Appends to a run's curves, starting from a checkpoint.

    Lines after the checkpoint, from a session that was cut off, are removed first: those steps
    are about to happen again.
    """

    def __init__(self, run: Path, start: TrainingProgress, board: bool = True) -> None:
        self.path = run / "metrics.jsonl"
        rows = read_json_lines(self.path)
        kept = [row for row in rows if row.get("images", 0) <= start.images_seen]
        if len(kept) != len(rows):
            write_text(self.path, "".join(json.dumps(row, sort_keys=True) + "\n" for row in kept))
        self._board: Any = _NoBoard()
        if board:
            from torch.utils.tensorboard import SummaryWriter  # slow to import

            self._board = SummaryWriter(str(run / "tensorboard"), purge_step=start.images_seen + 1)
        self._scores, self._shown = run / "scores.jsonl", len(read_json_lines(run / "scores.jsonl"))

    def add(self, progress: TrainingProgress, measured: Measured) -> None:
        """Write one line and one point of each curve; the x axis counts images."""
        append_json_line(
            self.path,
            {
                "images": progress.images_seen,
                "step": progress.step,
                "seconds": round(progress.seconds, 3),
                **measured.row(),
            },
        )
        for name, value in measured.curves():
            self._board.add_scalar(name, value, progress.images_seen)
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
