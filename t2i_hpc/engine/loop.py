"""The training loop: batches through phases, with checkpoints, samples and a way to stop.

Everything is counted in images seen, the one integer from which a run resumes. What decides
a result (noise, dropout, samples) is a function of the seed and that count.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from t2i_hpc.common.collectives import mean_over_ranks
from t2i_hpc.common.errors import RunError
from t2i_hpc.common.seeds import noise, seed_step
from t2i_hpc.common.step import Batch, System
from t2i_hpc.config.engine import EngineConfig
from t2i_hpc.engine.checkpoint import (
    Progress,
    load_optimisers,
    load_weights,
    newest_checkpoint,
    prune_checkpoints,
    save_checkpoint,
)
from t2i_hpc.engine.ddp import DDPEngine
from t2i_hpc.engine.meter import Meter, timed
from t2i_hpc.engine.progress import ProgressLine, Status
from t2i_hpc.engine.records import Records
from t2i_hpc.engine.stop import StopRequest
from t2i_hpc.engine.world import World


@dataclass(frozen=True)
class Job:
    """What the loop is given.

    Attributes:
        run: the run directory.
        system: networks and phases, on the world's device.
        batches: this rank's endless batches from a number of samples on.
        sample: writes sample pictures of the system as it is, named by images seen.
        seed: of noise and dropout.
    """

    run: Path
    system: System
    batches: Callable[[int], Iterable[Batch]]
    sample: Callable[[int], None]
    seed: int
    config: EngineConfig
    world: World


class Loop:
    """One session of a run: from its newest checkpoint to its end or a request to stop."""

    def __init__(self, job: Job, line: ProgressLine, stop: StopRequest) -> None:
        self.job = job
        self.line = line
        self.stop = stop
        self.engine = DDPEngine(
            job.system, job.world, job.config.precision, job.config.channels_last
        )
        self.progress = self._resume()
        job.world.barrier()  # nobody writes before everybody has looked
        self.records = Records(job.run, self.progress) if job.world.is_main else None
        self._saved = time.monotonic()

    def run(self) -> bool:
        """Train to the end (True) or until asked to stop (False); a checkpoint is last."""
        if self.progress.images_seen == 0:
            self._sample()
            self._save()
        done = self._done()
        try:
            if not done:
                done = self._train()
        finally:
            if self.records:
                self.records.close()
        return done

    def _train(self) -> bool:
        meter = Meter(self.job.config.batch_size)
        batches = iter(self.job.batches(self.progress.images_seen))
        for batch in timed(batches, meter):
            values = self._step(batch, meter)
            if self.progress.step % self.job.config.log_every == 0:
                self._log(values, meter)
            if self._crossed(self.job.config.samples_every_images):
                self._sample()
            stop, save = self.job.world.agree(self._must_stop(), self._must_save())
            if stop or save:
                self._finite(values)
                self._save()
            if stop:
                break
        if not self._crossed(self.job.config.samples_every_images):
            self._sample()
        return self._done()

    def _step(self, batch: Batch, meter: Meter) -> dict[str, Tensor]:
        world, system = self.job.world, self.job.system
        seed_step(self.job.seed, self.progress.images_seen, world.rank)
        latent = noise(self.job.seed, "noise", batch.positions.tolist(), system.noise_width)
        values = self.engine.step(
            batch.to(world.device), latent.to(world.device), self.progress.images_seen
        )
        seconds = meter.step_done()
        self.progress = Progress(
            self.progress.images_seen + self.job.config.batch_size,
            self.progress.step + 1,
            self.progress.seconds + seconds,
        )
        return values

    def _log(self, values: dict[str, Tensor], meter: Meter) -> None:
        losses = self._finite(values)
        speed, waited = meter.read()
        if self.records:
            self.records.add(self.progress, speed, waited, losses)
        share, remaining = self._outlook(speed)
        self.line.show(
            Status(
                self.progress.step,
                self.progress.images_seen,
                speed,
                waited,
                losses,
                share,
                remaining,
            )
        )

    def _finite(self, values: dict[str, Tensor]) -> dict[str, float]:
        """Return the losses, averaged over the ranks.

        Raises:
            RunError: one of them is not a number; nothing of this step is saved.
        """
        stacked = mean_over_ranks(torch.stack([value.float() for value in values.values()]))
        losses = dict(zip(values, stacked.tolist(), strict=True))
        for name, value in losses.items():
            if not math.isfinite(value):
                raise RunError(
                    f"{name} became {value} at step {self.progress.step}; the checkpoints of "
                    f"{self.job.run} are intact: lower a learning rate or take precision=fp32"
                )
        return losses

    def _outlook(self, speed: float) -> tuple[float, float | None]:
        """Return the share done and the seconds left, by whichever end comes first."""
        config, progress = self.job.config, self.progress
        share = progress.images_seen / config.images
        left = (config.images - progress.images_seen) / speed if speed > 0 else None
        if config.minutes is not None:
            share = max(share, progress.seconds / (60 * config.minutes))
            by_time = 60 * config.minutes - progress.seconds
            left = by_time if left is None else min(left, by_time)
        return min(1.0, share), left

    def _done(self) -> bool:
        config = self.job.config
        late = config.minutes is not None and self.progress.seconds >= 60 * config.minutes
        (late,) = self.job.world.agree(late)
        return late or self.progress.images_seen >= config.images

    def _must_stop(self) -> bool:
        config = self.job.config
        late = config.minutes is not None and self.progress.seconds >= 60 * config.minutes
        return self.stop.requested or late or self.progress.images_seen >= config.images

    def _must_save(self) -> bool:
        config = self.job.config.checkpoint
        old = time.monotonic() - self._saved >= 60 * config.every_minutes
        milestone = config.milestones > 0 and self._crossed(config.milestones)
        return old or milestone or self._crossed(config.every_images)

    def _crossed(self, interval: int) -> bool:
        """Whether the last step reached a multiple of `interval` images."""
        seen = self.progress.images_seen
        return seen // interval > (seen - self.job.config.batch_size) // interval

    def _sample(self) -> None:
        if self.job.world.is_main:
            self.job.sample(self.progress.images_seen)

    def _save(self) -> None:
        job, keep = self.job, self.job.config.checkpoint
        if job.world.is_main:
            save_checkpoint(
                job.run,
                job.system.modules,
                job.system.parts,
                self.engine.optimisers,
                self.progress,
            )
            prune_checkpoints(job.run, keep.keep, keep.milestones)
        self._saved = time.monotonic()
        job.world.barrier()

    def _resume(self) -> Progress:
        checkpoint = newest_checkpoint(self.job.run)
        if checkpoint is None:
            return Progress()
        load_weights(checkpoint, self.job.system.modules)
        load_optimisers(checkpoint, self.job.system.parts, self.engine.optimisers)
        done = checkpoint.progress
        self.line.say(f"resuming at step {done.step:,}, {done.images_seen:,} images seen")
        return replace(done)
