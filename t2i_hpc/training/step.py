"""One training step of any system: :func:`train_step`, and the hooks that strategies implement.

A :class:`Strategy` is DDP (``ddp.py``) or DeepSpeed's ZeRO (``deepspeed.py``): how gradients are
averaged over the ranks and who keeps Adam's moments. Everything else of a step is here.

With ``engine.accumulate`` = k a rank's batch is cut into k micro-batches, whose gradients are
averaged before the one update of a phase. Batch norm then normalizes over a micro-batch of all
ranks instead of the global batch, and wrong captions and DAMSM's negatives come from it too:
the images a step sees are the same, the training is that of a smaller batch in these three.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from t2i_hpc.config.engine import EngineConfig
from t2i_hpc.data.batches import Batch
from t2i_hpc.models.recomputation import recompute
from t2i_hpc.systems.base import (
    Loss,
    Losses,
    Phase,
    SplitLoss,
    StepBeginner,
    System,
    Term,
    phases_of_step,
    total,
)
from t2i_hpc.training.checks import check_engine
from t2i_hpc.training.phase_clock import EMA, SHARED, PhaseClock
from t2i_hpc.training.precision import NonFiniteWatch, Precision
from t2i_hpc.training.world import World

Moments = Mapping[str, Tensor]
Values = dict[str, Tensor]


def train_step(strategy: Strategy, batch: Batch, noise: Tensor, images_seen: int = 0) -> Values:
    """Run all phases once; return each loss term by ``phase/term``, on the device.

    Args:
        strategy: of the system.
        batch: this rank's slice of the global batch, B images.
        noise: (B, noise_width).
        images_seen: before this step; learning rates follow it.
    """
    system, batch_size = strategy.system, len(batch.images) * strategy.world.size
    strategy.begin_step(images_seen, batch_size)  # learning rates; moments that restart
    # What phases share, e.g. the fakes: drawn once, before any update.
    contexts = [strategy.begin(*part) for part in strategy.micro_batches(batch, noise)]
    values: Values = {}
    for phase in strategy.due_phases():  # one optimizer step each: later ones see its updates
        strategy.zero_grad(phase)
        means: Values = {}
        for begun in contexts:
            context = strategy.redraw(phase, begun)  # itself, with one micro-batch
            # Of real images, then of fake ones: the graph of one backward at a time is there.
            for part in (parts := strategy.parts(phase)):
                # Collectives: gradients are averaged over ranks inside the last backward alone.
                last = begun is contexts[-1] and part is parts[-1]
                with strategy.all_reduce(phase, last), strategy.precision.float32(phase.float32):
                    loss, terms = strategy.forward(phase, part, context)  # autocast; Σ weight·term
                    strategy.backward(phase, loss)  # float32, 1/k of a micro-batch's each
                _add_mean(means, terms, len(contexts))
        values |= {f"{phase.name}/{name}": value for name, value in means.items()}
        strategy.record(phase, means)  # no sync: norms are copied, and read a step later
        if strategy.skips(phase):  # the one device sync, with engine.on_nonfinite=skip alone
            continue
        strategy.clip(phase)  # after averaging: the norm is that of the global batch's gradient
        strategy.optimizer_step(phase)
    strategy.end_step()
    for ema in system.emas:  # after all phases: θ̄ ← θ̄ + (1 - 2^(-B/half-life)) (θ - θ̄)
        ema.update(images_seen + batch_size, batch_size)
    strategy.clock.end_step()  # no sync: events are left behind, and read a step later
    return values


class Strategy(ABC):
    """What DDP and DeepSpeed do differently in :func:`train_step`.

    Args:
        system: what to train; its modules must be on the world's device.
        world: this rank's place.
        config: precision, layout, micro-batches, optimizer, schedule.

    Raises:
        ConfigurationError: a setting that cannot be kept, before anything is computed.
    """

    def __init__(self, system: System, world: World, config: EngineConfig | None = None) -> None:
        self.system, self.world = system, world
        self.config = config = config or EngineConfig()
        check_engine(system, config, world.size, world.device)
        self.precision = Precision(config.precision, world.device, config.deterministic)
        self.nonfinite = NonFiniteWatch()
        self.clock = PhaseClock(world.device)
        self.step_number = 0
        self.layout = torch.channels_last if config.channels_last else torch.contiguous_format
        self.phases: Sequence[Phase] = system.phases
        if config.compile:
            from t2i_hpc.training.compilation import compile_chosen

            self.phases = compile_chosen(system, config.compile, world, self.precision.name)
        for name in config.recompute:
            recompute(system.modules[name])

    @property
    @abstractmethod
    def kind(self) -> str:
        """Name and version, for the run's record."""

    def begin_step(self, images_seen: int, batch_size: int) -> None:
        """Count the step, and give every optimizer its learning rate."""
        self.step_number = images_seen // batch_size + 1
        self.schedule(images_seen, batch_size)
        self.clock.start(SHARED)
        if isinstance(self.system, StepBeginner):
            self.system.begin_step(images_seen)

    @abstractmethod
    def schedule(self, images_seen: int, batch_size: int) -> None:
        """Set learning rates; forget the moments that restart."""

    def micro_batches(self, batch: Batch, noise: Tensor) -> list[tuple[Batch, Tensor]]:
        """Cut a batch and its noise into ``engine.accumulate`` equal parts, in order."""
        count = self.config.accumulate
        if count == 1:
            return [(batch, noise)]
        return list(zip(split_batch(batch, count), noise.chunk(count), strict=True))

    def begin(self, batch: Batch, noise: Tensor) -> Any:
        """Return the context that the phases of a micro-batch share."""
        images = batch.images.contiguous(memory_format=self.layout)
        graph = not any(self._redraws(phase) for phase in self.system.phases)
        with self.precision.autocast(), torch.set_grad_enabled(graph):
            return self.system.begin(replace(batch, images=images), noise)

    def redraw(self, phase: Phase, context: Any) -> Any:
        """Return a context with the generator's graph where the phase wants it and it has none.

        With several micro-batches that of one at a time is there: the memory of one, for a
        generator's forward more.
        """
        if phase.redraw is None or not self._redraws(phase):
            return context
        with self.precision.autocast():
            return phase.redraw(context)

    def _redraws(self, phase: Phase) -> bool:
        return phase.redraw is not None and self.config.accumulate > 1

    def due_phases(self) -> Iterator[Phase]:
        """Yield the phases of this step in order; the heartbeat and the clock hear of each."""
        for phase in phases_of_step(self.phases, self.step_number - 1):
            self.world.set_stage(f"step {self.step_number:,}, phase {phase.name}")
            self.clock.start(phase.name)
            yield phase

    @abstractmethod
    def zero_grad(self, phase: Phase) -> None:
        """Forget the gradients of the modules that a phase updates."""

    @abstractmethod
    def all_reduce(self, phase: Phase, last: bool) -> AbstractContextManager[None]:
        """Average gradients over the ranks within the block, in the last backward alone."""

    def parts(self, phase: Phase) -> tuple[Loss, ...]:
        """Return what a phase computes, each with a backward of its own."""
        loss = phase.loss
        return loss.parts if isinstance(loss, SplitLoss) and self.config.split_losses else (loss,)

    @abstractmethod
    def forward(self, phase: Phase, loss: Loss, context: Any) -> tuple[Tensor, Losses]:
        """Return one of a phase's losses with graph, and its terms without."""

    @abstractmethod
    def backward(self, phase: Phase, loss: Tensor) -> None:
        """Add a loss's gradients, divided by the number of micro-batches."""

    @abstractmethod
    def gradients(self, phase: Phase) -> dict[str, Tensor]:
        """Return what shows whether a phase's gradients are finite, by name."""

    def record(self, phase: Phase, means: Values) -> None:
        """Record loss terms and gradients, whose norms travel to the CPU on the stream."""
        self.nonfinite.record(self.step_number, phase.name, means, self.gradients(phase))

    def skips(self, phase: Phase) -> bool:
        """Whether the update of a phase is left out because its gradients are not finite."""
        return False

    @abstractmethod
    def clip(self, phase: Phase) -> None:
        """Scale each module's whole gradient down to its largest norm."""

    @abstractmethod
    def optimizer_step(self, phase: Phase) -> None:
        """Take the step of the phase's optimizers."""

    def end_step(self) -> None:
        """End the phases: what skipped updates left behind is repaired before EMAs take it in."""
        self.repair()
        self.clock.start(EMA)

    @abstractmethod
    def repair(self) -> None:
        """Repair what skipped updates left behind."""

    @abstractmethod
    def read_moments(self) -> dict[str, Tensor]:
        """Return the optimizers' state by ``module/parameter/moment``, whole on rank 0.

        All ranks call it; the others may get less.
        """

    @abstractmethod
    def write_moments(self, moments: Moments) -> None:
        """Load the optimizers' state of a checkpoint; all ranks call it."""


def build_strategy(system: System, world: World, config: EngineConfig) -> Strategy:
    """Build what the configuration names.

    Raises:
        ConfigurationError: it cannot run here, or not as configured.
    """
    if config.name == "deepspeed":
        from t2i_hpc.training.deepspeed import DeepSpeedStrategy

        return DeepSpeedStrategy(system, world, config)
    from t2i_hpc.training.ddp import DDPStrategy

    return DDPStrategy(system, world, config)


class PhaseLoss(nn.Module):
    """The modules a phase updates, with the loss as forward: what DDP and DeepSpeed wrap."""

    def __init__(self, trainable: list[nn.Module]) -> None:
        super().__init__()
        self.trainable = nn.ModuleList(trainable)

    def forward(self, loss: Loss, context: Any) -> tuple[Tensor, Losses]:
        """Return the weighted sum (with graph) and the single terms."""
        losses = loss(context)
        value = total(losses)
        return value, {
            name: Term(term.value.detach(), term.weight) for name, term in losses.items()
        }


def set_memory_format(
    modules: nn.Module, layout: torch.memory_format, but: Iterable[nn.Parameter] = ()
) -> None:
    """Store the weights of convolutions as `layout` says, all `but` some; values stay.

    The images that pass through follow the weights.
    """
    kept = {id(parameter) for parameter in but}
    for parameter in modules.parameters():
        if parameter.dim() == 4 and id(parameter) not in kept:
            parameter.data = parameter.data.contiguous(memory_format=layout)


def split_batch(batch: Batch, count: int) -> list[Batch]:
    """Cut a batch into equal parts, in order."""
    size = len(batch.images) // count
    cuts = [slice(part * size, (part + 1) * size) for part in range(count)]
    names = ("images", "tokens", "lengths", "classes", "positions", "captions", "keys")
    return [replace(batch, **{name: getattr(batch, name)[cut] for name in names}) for cut in cuts]


def _add_mean(means: Values, terms: Losses, count: int) -> None:
    """Add one of `count` micro-batches to the mean of each term."""
    for name, term in terms.items():
        value = term.value / count
        means[name] = means[name] + value if name in means else value
