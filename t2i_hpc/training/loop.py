"""The training loop: load, step, log, sample, save, stop.

Everything is counted in images seen, the one integer from which a run resumes. What decides
a result (noise, dropout, samples) is a function of the seed and that count.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from t2i_hpc.common.collectives import mean_over_ranks
from t2i_hpc.common.errors import RunError
from t2i_hpc.common.seeds import noise, seed_step
from t2i_hpc.common.transfer import to_device
from t2i_hpc.config.engine import EngineConfig
from t2i_hpc.data.batches import Batch
from t2i_hpc.data.loader import ReadCounts
from t2i_hpc.runs.checkpoint import TrainingProgress
from t2i_hpc.systems.base import System
from t2i_hpc.training.callbacks.background_evaluation import EvaluationRequests
from t2i_hpc.training.checkpoints.saving import Saver
from t2i_hpc.training.metrics_log import (
    Arithmetic,
    Measured,
    Meter,
    MetricsLog,
    ReadMeter,
    peak_memory,
)
from t2i_hpc.training.optimizers import learning_rate
from t2i_hpc.training.profiler import StepProfiler, profiled_steps
from t2i_hpc.training.progress import ProgressLine, RunOutput, Status
from t2i_hpc.training.step import build_strategy, train_step
from t2i_hpc.training.stopping import Limits, StopRequest
from t2i_hpc.training.trackers import TENSORBOARD, Followers
from t2i_hpc.training.world import World

_POLL_SECONDS = 1.0


@dataclass(frozen=True)
class TrainingSetup:
    """What the loop is given.

    Attributes:
        run: the run directory.
        system: networks and phases, on the world's device.
        batches: this rank's endless batches from a number of samples on.
        sample: writes sample pictures of the system as it is, named by images seen; returns what
            it measured of them, by name.
        seed: of noise and dropout.
        evaluations: that run in the background; None where there are none.
        vocabulary: SHA-256 of what numbers the tokens of captions.
        rebuild: gives the system as it was when the run began.
        first: what run.json keeps of the weights that the run starts from.
        flops: floating-point operations of a step by its images; None where not counted.
        trackers: that show the curves.
        finished: whether the training is at its end after so many images, by what `sample` found.
        reads: what this rank's loader has read since it started.
    """

    run: Path
    system: System
    batches: Callable[[int], Iterable[Batch]]
    sample: Callable[[int], Mapping[str, float] | None]
    seed: int
    config: EngineConfig
    world: World
    evaluations: EvaluationRequests | None = None
    vocabulary: str = ""
    rebuild: Callable[[], System] | None = None
    first: Mapping[str, Any] = field(default_factory=dict)
    flops: float | None = None
    trackers: Sequence[str] = (TENSORBOARD,)
    finished: Callable[[int], bool] = lambda images_seen: False
    reads: Callable[[], ReadCounts] = ReadCounts


class Loop:
    """One session of a run: from its newest checkpoint to its end or a request to stop."""

    def __init__(self, setup: TrainingSetup, line: ProgressLine, stop: StopRequest) -> None:
        self.setup, self.config, self.world = setup, setup.config, setup.world
        self.line, self.stop = line, stop
        self.strategy = build_strategy(setup.system, setup.world, setup.config)
        output = RunOutput(setup.run, line)
        self.saver = Saver(output, self.strategy, setup.vocabulary, setup.rebuild)
        self.limits = Limits(
            setup.config, stop, output if setup.world.is_main else None, setup.finished
        )
        self.progress = self.saver.resume()
        setup.world.barrier()  # nobody writes before everybody has looked
        self.log: MetricsLog | None = None
        self.followers: Followers | None = None
        if setup.world.is_main:
            self.log = MetricsLog(setup.run, self.progress, TENSORBOARD in setup.trackers)
            self.followers = Followers(setup.run, setup.trackers, line.say)
        self.arithmetic = Arithmetic.of(
            setup.flops, setup.world.device, self.strategy.precision.name, setup.world.size
        )
        if self.arithmetic.flops is not None and self.arithmetic.peak is None:
            line.say("MFU is left out: this card is not in t2i_hpc/cluster/cards.csv")
        steps = profiled_steps(setup.config.profile if setup.world.is_main else [])
        self.profiler = StepProfiler(output, steps, self.strategy.clock)
        self.reads = ReadMeter(setup.reads)
        self._nonfinite: str | None = None
        self._terms: dict[str, Tensor] = {}
        self._sampled: dict[str, float] = {}  # of grids since the last line of metrics.jsonl

    def run(self) -> bool:
        """Train to the end (True) or until asked to stop (False); a checkpoint is last."""
        try:
            with self.saver:  # what is being written is whole before the session ends
                if self.progress.images_seen == 0:
                    self._sample()
                    self._save()
                done = self._done() or self._train()
            if done:
                self._wait_for_evaluations()
        finally:
            self._close()
        return done

    def _train(self) -> bool:
        meter = Meter(self.config.batch_size)
        self.world.set_stage("waiting for data")
        with _closing(self.setup.batches(self.progress.images_seen)) as batches:
            given = map(self._with_noise, batches)
            for batch, latent in meter.timed(on_device(given, self.world.device)):
                values = self._step(batch, latent, meter)
                if self._samples_are_due():
                    self._sample()
                if self.progress.step % self.config.log_every == 0:
                    self._log(values, meter)
                stop, save = self._agree_to_stop_and_save()
                if stop or save:
                    self._save()
                if stop:
                    break
                self.world.set_stage(f"step {self.progress.step + 1:,}, waiting for data")
            done = self._done()
            if done and not self._samples_are_due():
                self._sample()
        return done

    def _with_noise(self, batch: Batch) -> tuple[Batch, Tensor]:
        width = self.setup.system.noise_width
        return batch, noise(self.setup.seed, "noise", batch.positions.tolist(), width)

    def _step(self, batch: Batch, latent: Tensor, meter: Meter) -> dict[str, Tensor]:
        seen = self.progress.images_seen
        seed_step(self.setup.seed, seen)
        self.profiler.begin_step()
        # What a phase that runs every few steps gave last stays what it was.
        self._terms |= train_step(self.strategy, batch, latent, seen)
        seconds = self.progress.seconds + meter.step_done()
        self.progress = TrainingProgress(
            seen + self.config.batch_size, self.progress.step + 1, seconds
        )
        self.profiler.end_step(self.progress.step)
        return self._terms

    def _log(self, values: dict[str, Tensor], meter: Meter) -> None:
        self.world.set_stage(f"step {self.progress.step:,}, logging")
        # A collective; tolist waits for the device, so it is done every log_every steps alone.
        stacked = mean_over_ranks(torch.stack([value.float() for value in values.values()]))
        measured = self._measured(dict(zip(values, stacked.tolist(), strict=True)), meter)
        done, speed = self.progress, measured.images_per_second
        if self.log:
            self.log.add(done, measured)
        if self.followers:
            self.followers.wake()
        share, remaining = self.limits.eta(done, speed)
        self.line.show(
            Status(
                done.step,
                done.images_seen,
                speed,
                measured.data_wait,
                measured.losses,
                share,
                remaining,
                measured.teraflops,
                measured.mfu,
                measured.fetched,
                measured.found,
            )
        )

    def _measured(self, losses: dict[str, float], meter: Meter) -> Measured:
        speed, waited = meter.read()
        sampled, self._sampled = self._sampled, {}
        before, schedule = self.progress.images_seen - self.config.batch_size, self.config.schedule
        return Measured(
            losses,
            speed,
            waited,
            peak_memory(self.world.device),
            self.arithmetic.teraflops(speed),
            self.arithmetic.mfu(speed),
            self.strategy.clock.read(),
            self.strategy.nonfinite.gradient_norms(self.strategy.step_number),
            {
                name: learning_rate(settings, schedule, before)
                for name, settings in self.setup.system.optimizers.items()
            },
            sampled,
            *self.reads.read(),
        )

    def _samples_are_due(self) -> bool:
        return self.progress.crossed(self.config.samples_every_images, self.config.batch_size)

    def _sample(self) -> None:
        self.world.set_stage(f"step {self.progress.step:,}, sampling")
        if self.world.is_main:
            measured = self.setup.sample(self.progress.images_seen) or {}
            self._sampled.update(measured if self.progress.step else {})  # step 0 has no line

    def _agree_to_stop_and_save(self) -> tuple[bool, bool]:
        """Return whether to stop and whether to save, the same on all ranks; a collective call.

        Raises:
            RunError: a step made NaN or Inf.
        """
        agree, progress = self.world.agree, self.progress
        due = self.saver.due(progress) or self._evaluation_is_due()
        stop, save, bad = agree(
            self.limits.stop(progress),
            self.limits.save_is_asked_for() or due,
            self._is_nonfinite(progress.step),
        )
        if stop or save:  # what is saved was checked to the last step
            (bad,) = agree(self._is_nonfinite(math.inf))
        if bad:
            raise RunError(
                f"{self._nonfinite or 'a number of another rank'} is not finite; the checkpoints "
                f"of {self.setup.run} are intact: lower a learning rate, take "
                "engine.precision=fp32 or engine.on_nonfinite=skip"
            )
        return stop, save

    def _is_nonfinite(self, before: float) -> bool:
        """Whether a step before number `before` made NaN or Inf."""
        self._nonfinite = self._nonfinite or self.strategy.nonfinite.pop_first(before)
        return self._nonfinite is not None

    def _save(self) -> None:
        self.world.set_stage(f"step {self.progress.step:,}, saving")
        self.limits.saving(self.progress)
        then: Callable[[], None] | None = None
        if self.setup.evaluations and self._evaluation_is_due():
            then = partial(self.setup.evaluations.request, self.progress.images_seen)
        self.saver.save(self.progress, then)

    def _done(self) -> bool:
        (done,) = self.world.agree(self.limits.reached(self.progress))
        return done

    def _evaluation_is_due(self) -> bool:
        if self.setup.evaluations is None:
            return False
        return self.setup.evaluations.due(self.progress) or self.limits.reached(self.progress)

    def _wait_for_evaluations(self) -> None:
        """Wait on all ranks for the first one's: launchers end a job some time after a rank."""
        told = False
        while self.world.agree(self._is_evaluating())[0]:
            if not told:
                self.line.say("waiting for evaluations")
            told = True
            self.world.set_stage("waiting for evaluations")
            time.sleep(_POLL_SECONDS)

    def _is_evaluating(self) -> bool:
        evaluations = self.setup.evaluations
        return evaluations is not None and evaluations.busy() and not self.stop.requested

    def _close(self) -> None:
        self.profiler.close()
        if self.setup.evaluations:
            self.setup.evaluations.close()
        if self.log:
            self.log.add_scores()
            self.log.close()
        if self.followers:
            self.followers.close()


@contextmanager
def _closing(batches: Iterable[Batch]) -> Iterator[Iterable[Batch]]:
    """End the loader's generator: an error keeps the frames of its traceback, and these it."""
    try:
        yield batches
    finally:
        if isinstance(batches, Generator):
            batches.close()


def on_device(
    batches: Iterable[tuple[Batch, Tensor]], device: torch.device
) -> Iterator[tuple[Batch, Tensor]]:
    """Yield batches and their noise in order, on `device`; prefetch one on a GPU.

    There the next batch is copied on a stream of its own while the current step computes; the
    step's stream waits for the copy, the processor never. On a CPU there is nothing to move.
    """
    if device.type != "cuda":
        yield from ((batch.to(device), latent.to(device)) for batch, latent in batches)
        return
    stream, next_batch = torch.cuda.Stream(device), None
    for batch, latent in batches:
        with torch.cuda.stream(stream):
            there = batch.to(device), to_device(latent, device)
            copying = _CopiedBatch(*there, stream.record_event())
        if next_batch is not None:
            yield next_batch.wait()
        next_batch = copying


@dataclass(frozen=True)
class _CopiedBatch:
    """A batch and its noise that are being copied, and the event that the copy is complete."""

    batch: Batch
    latent: Tensor
    copied: torch.cuda.Event

    def wait(self) -> tuple[Batch, Tensor]:
        """Let the current stream wait for the copy, and keep the memory while it is in use."""
        batch, current = self.batch, torch.cuda.current_stream(self.batch.images.device)
        current.wait_event(self.copied)
        for tensor in (batch.images, batch.tokens, batch.classes, self.latent):
            tensor.record_stream(current)
        return batch, self.latent
