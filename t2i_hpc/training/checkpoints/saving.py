"""A session's checkpoints: the one it resumes from, those that it writes, and which stay."""

from __future__ import annotations

import datetime
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

import t2i_hpc
from t2i_hpc.common.errors import RunError
from t2i_hpc.config.engine import CheckpointConfig
from t2i_hpc.data.captions import check_same_words
from t2i_hpc.runs.checkpoint import Checkpoint, TrainingProgress, load_weights, read_tensors
from t2i_hpc.runs.inventory import ranking
from t2i_hpc.runs.layout import clear_leftovers, folder_of, list_checkpoints, remove
from t2i_hpc.systems.base import System
from t2i_hpc.training.callbacks.background_evaluation import waiting_for_scores
from t2i_hpc.training.checkpoints.recovery import recover_together
from t2i_hpc.training.checkpoints.replicas import compare_replicas
from t2i_hpc.training.checkpoints.writing import (
    BackgroundWriter,
    Snapshot,
    check_space,
    said_of_disk,
    split_frozen,
    take_snapshot,
    write_checkpoint,
)
from t2i_hpc.training.optimizers import check_moments
from t2i_hpc.training.progress import RunOutput
from t2i_hpc.training.step import Strategy
from t2i_hpc.training.world import raise_together

_WORTH_TELLING_SECONDS = 1.0


class Saver:
    """Loads the newest checkpoint of a run, and writes new ones in the background.

    All ranks call it. As a context it waits at the end for what is being written; after an
    error too, but not when a person insists on leaving.

    Args:
        output: the run whose checkpoints they are.
        strategy: what is saved.
        vocabulary: SHA-256 of what numbers the tokens of captions.
        rebuild: gives the system as it was when the run began, from which frozen networks are
            restored that the disk has lost.
    """

    def __init__(
        self,
        output: RunOutput,
        strategy: Strategy,
        vocabulary: str = "",
        rebuild: Callable[[], System] | None = None,
    ) -> None:
        self._output, self._strategy, self._vocabulary = output, strategy, vocabulary
        self._rebuild = rebuild
        self._system, self._world = strategy.system, strategy.world
        self._config = strategy.config
        self._writer = BackgroundWriter()
        self._last = time.monotonic()
        self._saved: int | None = None

    def __enter__(self) -> Saver:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self.finish()
        elif issubclass(kind, Exception):
            self._writer.wait()  # the other ranks may be gone: no agreement

    def resume(self) -> TrainingProgress:
        """Load the newest valid checkpoint, if there is one; return how far the run is.

        Raises:
            RunError: on all ranks; none is valid though there are some, or it does not fit.
        """
        checkpoint = recover_together(self._output.folder, self._world, rebuild=self._rebuild)
        if checkpoint is None:
            return TrainingProgress()
        moments, error = self._load(checkpoint)
        raise_together(self._world, error)
        self._strategy.write_moments(moments)
        done = checkpoint.progress
        self._saved = done.images_seen
        self._output.line.say(f"resuming at step {done.step:,}, {done.images_seen:,} images seen")
        return done

    def due(self, progress: TrainingProgress) -> bool:
        """Whether a checkpoint is due after the step that `progress` counts last.

        One that failed is due at once, so that all ranks raise it.
        """
        config = self._config.checkpoint
        old = time.monotonic() - self._last >= 60 * config.every_minutes
        milestone = progress.crossed(config.milestones, self._config.batch_size)
        regular = progress.crossed(config.every_images, self._config.batch_size)
        return old or milestone or regular or self._writer.failed

    def save(self, progress: TrainingProgress, then: Callable[[], None] | None = None) -> None:
        """Take a snapshot and begin to write it; then delete what is not kept.

        Args:
            progress: of the training.
            then: what rank 0's writer thread does once the checkpoint is on the disk.

        Raises:
            RunError: on all ranks; replicas differ, the disk has no room, or what was written
                before could not be.
        """
        self.finish()
        if progress.images_seen == self._saved:
            return
        compare_replicas(self._system.modules, self._world)
        moments = self._strategy.read_moments()
        error: Exception | None = None
        if self._world.is_main:
            error = self._begin(moments, progress, then)
        raise_together(self._world, error)
        self._saved, self._last = progress.images_seen, time.monotonic()

    def finish(self) -> None:
        """Wait until what is being written is on the disk; a collective call.

        Raises:
            RunError: on all ranks; it could not be written.
        """
        error, waited = self._writer.wait()
        if waited > _WORTH_TELLING_SECONDS:
            self._output.line.say(f"waited {waited:.1f} s for a checkpoint to be written")
        try:
            raise_together(self._world, error)
        except Exception:
            self._saved = None  # on all ranks: it may be tried again
            raise

    def _load(self, checkpoint: Checkpoint) -> tuple[Mapping[str, Tensor], Exception | None]:
        """Load the networks, and return the optimizers' state once it is known to fit."""
        try:
            check_same_words(
                f"the checkpoint {checkpoint.folder}",
                checkpoint.vocabulary,
                self._vocabulary,
                "put the vocabulary.json back that it was trained with",
            )
            moments = read_tensors(checkpoint.moments)
            check_moments(checkpoint.moments, moments, self._system)
            load_weights(checkpoint.files, self._system.modules)
        except RunError as error:
            return {}, error
        return moments, None

    def _begin(
        self,
        moments: Mapping[str, Tensor],
        progress: TrainingProgress,
        then: Callable[[], None] | None,
    ) -> Exception | None:
        folder = self._output.folder
        weights, frozen = split_frozen(self._system, self._system.modules.state_dict())
        try:
            with said_of_disk(folder):
                clear_leftovers(folder)
                check_space(folder, weights, moments, {} if list_checkpoints(folder) else frozen)
            copies = take_snapshot(weights), take_snapshot(moments)
            apart = take_snapshot(frozen)
        except Exception as error:  # the others wait for it
            return error
        snapshot = Snapshot(*copies, progress, self._origin(), apart)
        self._writer.start(partial(self._write, snapshot, then))
        return None

    def _write(self, snapshot: Snapshot, then: Callable[[], None] | None) -> None:
        """Run in the writer's thread."""
        folder = self._output.folder
        write_checkpoint(folder, snapshot)
        with said_of_disk(folder):
            if then:
                then()
            prune_checkpoints(folder, self._config.checkpoint)

    def _origin(self) -> dict[str, Any]:
        now = datetime.datetime.now(datetime.timezone.utc)
        return {
            "run": self._output.folder.name,
            "vocabulary": self._vocabulary,
            "engine": self._strategy.kind,
            "world": self._world.size,
            "precision": self._strategy.precision.name,
            "versions": {"t2i_hpc": t2i_hpc.__version__, "torch": str(torch.__version__)},
            "time": now.isoformat(timespec="seconds"),
        }


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
