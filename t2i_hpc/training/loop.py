"""The training loop: batches through phases, with checkpoints, samples and a way to stop.

Everything is counted in images seen, the one integer from which a run resumes. What decides
a result (noise, dropout, samples) is a function of the seed and that count.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from t2i_hpc.common.collectives import mean_over_ranks
from t2i_hpc.common.errors import RunError
from t2i_hpc.common.seeds import noise, seed_step
from t2i_hpc.config.engine import EngineConfig
from t2i_hpc.data.batches import Batch
from t2i_hpc.runs.checkpoint import Progress
from t2i_hpc.systems.base import System
from t2i_hpc.training.callbacks.background_evaluation import Evaluations
from t2i_hpc.training.checkpoints.saving import Saver
from t2i_hpc.training.curves import Records
from t2i_hpc.training.prefetch import on_device
from t2i_hpc.training.progress import Meter, ProgressLine, RunFiles, Status, peak_memory, timed
from t2i_hpc.training.step import build_strategy, train_step
from t2i_hpc.training.stopping import Limits, StopRequest
from t2i_hpc.training.world import World

_LOOK_SECONDS = 1.0


@dataclass(frozen=True)
class Job:
    """What the loop is given.

    Attributes:
        run: the run directory.
        system: networks and phases, on the world's device.
        batches: this rank's endless batches from a number of samples on.
        sample: writes sample pictures of the system as it is, named by images seen.
        seed: of noise and dropout.
        evaluations: beside the training; None where there are none.
        vocabulary: SHA-256 of what numbers the words of the captions.
        rebuild: gives the system as it was when the run began.
    """

    run: Path
    system: System
    batches: Callable[[int], Iterable[Batch]]
    sample: Callable[[int], None]
    seed: int
    config: EngineConfig
    world: World
    evaluations: Evaluations | None = None
    vocabulary: str = ""
    rebuild: Callable[[], System] | None = None


class Loop:
    """One session of a run: from its newest checkpoint to its end or a request to stop."""

    def __init__(self, job: Job, line: ProgressLine, stop: StopRequest) -> None:
        self.job, self.line, self.stop = job, line, stop
        self.engine = build_strategy(job.system, job.world, job.config)
        files = RunFiles(job.run, line)
        self.saver = Saver(files, self.engine, job.vocabulary, job.rebuild)
        self.limits = Limits(job.config, stop, files if job.world.is_main else None)
        self.progress = self.saver.resume()
        job.world.barrier()  # nobody writes before everybody has looked
        self.records = Records(job.run, self.progress) if job.world.is_main else None
        self._bad: str | None = None

    def run(self) -> bool:
        """Train to the end (True) or until asked to stop (False); a checkpoint is last."""
        done = False
        try:
            with self.saver:  # what is being written is whole before the session ends
                done = self._session()
            if done:
                self._wait_for_evaluations()
        finally:
            self._close()
        return done

    def _session(self) -> bool:
        if self.progress.images_seen == 0:
            self._sample()
            self._save()
        return self._done() or self._train()

    def _train(self) -> bool:
        batches = self.job.batches(self.progress.images_seen)
        try:
            return self._train_on(batches)
        finally:  # an error keeps the frames of its traceback, and these the loader processes
            if isinstance(batches, Generator):
                batches.close()

    def _train_on(self, batches: Iterable[Batch]) -> bool:
        meter = Meter(self.job.config.batch_size)
        self.job.world.set_stage("waiting for data")
        for batch in timed(on_device(batches, self.job.world.device), meter):
            values = self._step(batch, meter)
            if self.progress.step % self.job.config.log_every == 0:
                self._log(values, meter)
            if self._samples_are_due():
                self._sample()
            stop, save = self._decide()
            if stop or save:
                self._save()
            if stop:
                break
            self.job.world.set_stage(f"step {self.progress.step + 1:,}, waiting for data")
        done = self._done()
        if done and not self._samples_are_due():
            self._sample()
        return done

    def _step(self, batch: Batch, meter: Meter) -> dict[str, Tensor]:
        world, system = self.job.world, self.job.system
        seed_step(self.job.seed, self.progress.images_seen)
        latent = noise(self.job.seed, "noise", batch.positions.tolist(), system.noise_width)
        values = train_step(self.engine, batch, latent.to(world.device), self.progress.images_seen)
        seconds = meter.step_done()
        self.progress = Progress(
            self.progress.images_seen + self.job.config.batch_size,
            self.progress.step + 1,
            self.progress.seconds + seconds,
        )
        return values

    def _decide(self) -> tuple[bool, bool]:
        """Return whether to stop and whether to save, the same on all ranks.

        Raises:
            RunError: a step made numbers that are none.
        """
        agree, progress = self.job.world.agree, self.progress
        stop, save, bad = agree(
            self.limits.stop(progress),
            self.limits.save_is_asked_for()
            or self.saver.due(progress)
            or self._evaluation_is_due(),
            self._is_bad(progress.step),
        )
        if stop or save:  # what is saved was looked at to the last step
            (bad,) = agree(self._is_bad(math.inf))
        if bad:
            raise RunError(
                f"{self._bad or 'a number of another rank'} is not finite; the checkpoints of "
                f"{self.job.run} are intact: lower a learning rate, take engine.precision=fp32 or "
                "engine.on_nonfinite=skip"
            )
        return stop, save

    def _is_bad(self, before: float) -> bool:
        """Whether a step before number `before` made numbers that are none."""
        self._bad = self._bad or self.engine.nonfinite.pop_first(before)
        return self._bad is not None

    def _log(self, values: dict[str, Tensor], meter: Meter) -> None:
        stacked = mean_over_ranks(torch.stack([value.float() for value in values.values()]))
        losses = dict(zip(values, stacked.tolist(), strict=True))
        speed, waited = meter.read()
        if self.records:
            memory = peak_memory(self.job.world.device)
            self.records.add(self.progress, speed, waited, memory, losses)
        outlook = self.limits.outlook(self.progress, speed)
        done = self.progress
        self.line.show(Status(done.step, done.images_seen, speed, waited, losses, *outlook))

    def _done(self) -> bool:
        (done,) = self.job.world.agree(self.limits.reached(self.progress))
        return done

    def _samples_are_due(self) -> bool:
        config = self.job.config
        return self.progress.crossed(config.samples_every_images, config.batch_size)

    def _save(self) -> None:
        self.job.world.set_stage(f"step {self.progress.step:,}, saving")
        self.limits.saving(self.progress)
        then: Callable[[], None] | None = None
        if self.job.evaluations and self._evaluation_is_due():
            then = partial(self.job.evaluations.ask, self.progress.images_seen)
        self.saver.save(self.progress, then)

    def _evaluation_is_due(self) -> bool:
        if self.job.evaluations is None:
            return False
        return self.job.evaluations.due(self.progress) or self.limits.reached(self.progress)

    def _wait_for_evaluations(self) -> None:
        """Wait on all ranks for the first one's: launchers end a job some time after a rank."""
        waited = False
        while self.job.world.agree(self._is_evaluating())[0]:
            if not waited:
                self.line.say("waiting for evaluations")
            waited = True
            self.job.world.set_stage("waiting for evaluations")
            time.sleep(_LOOK_SECONDS)

    def _is_evaluating(self) -> bool:
        evaluations = self.job.evaluations
        return evaluations is not None and evaluations.busy() and not self.stop.requested

    def _close(self) -> None:
        if self.job.evaluations:
            self.job.evaluations.close()
        if self.records:
            self.records.add_scores()
            self.records.close()

    def _sample(self) -> None:
        self.job.world.set_stage(f"step {self.progress.step:,}, drawing samples")
        if self.job.world.is_main:
            self.job.sample(self.progress.images_seen)
