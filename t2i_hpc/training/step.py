"""One training step of any system: its phases in order, each a loss, gradients and an update.

What differs between engines is how gradients are averaged over the ranks and who keeps the
moments; what does not is here: precision, micro-batches, learning rates, clipping, and what is
done about numbers that are none.

With ``engine.accumulate`` = k a rank's batch is cut into k micro-batches, whose gradients are
averaged before the one update of a phase. Batch norm then normalizes over a micro-batch of all
ranks instead of the global batch, and wrong captions and DAMSM's negatives come from it too:
the images a step sees are the same, the training is that of a smaller batch in these three.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from t2i_hpc.config.engine import EngineConfig
from t2i_hpc.data.batches import Batch
from t2i_hpc.systems.base import Losses, Phase, System, Term, total
from t2i_hpc.training.checks import check_engine
from t2i_hpc.training.nonfinite import FiniteWatch
from t2i_hpc.training.precision import Precision
from t2i_hpc.training.world import World

Moments = Mapping[str, Tensor]


class PhaseLoss(nn.Module):
    """The parts a phase updates, with the loss as forward.

    Args:
        parts: what is updated.
        anchored: add a zero that every parameter is part of. So each gets a gradient, if only
            zeros, on every rank and in every phase: Adam counts the step as the reference's
            does, and no rank waits for what another does not send.
    """

    def __init__(self, parts: list[nn.Module], anchored: bool = False) -> None:
        super().__init__()
        self.parts, self.anchored = nn.ModuleList(parts), anchored

    def forward(self, loss: Callable[[Any], Losses], context: Any) -> tuple[Tensor, Losses]:
        """Return the weighted sum (with graph) and the single terms."""
        losses = loss(context)
        value = total(losses)
        if self.anchored:
            trained = [p for p in self.parts.parameters() if p.requires_grad]
            value = value + torch.stack([p.flatten()[0] * 0 for p in trained]).sum()
        return value, {
            name: Term(term.value.detach(), term.weight) for name, term in losses.items()
        }


class Engine(ABC):
    """Runs the phases of a system.

    Args:
        system: what to run; its modules must already lie on the world's device.
        world: this rank's place.
        config: precision, layout, micro-batches, optimizer, schedule.

    Raises:
        ConfigurationError: a setting that cannot be kept, before anything is computed.
    """

    def __init__(self, system: System, world: World, config: EngineConfig | None = None) -> None:
        self.system, self.world = system, world
        self.config = config = config or EngineConfig()
        check_engine(system, config, world.size, world.device)
        self.precision = Precision(config.precision, world.device)
        self.watch = FiniteWatch()
        self.step_number = 0
        self.layout = torch.channels_last if config.channels_last else torch.contiguous_format
        for name in config.compile:
            system.modules[name].compile()

    def step(self, batch: Batch, noise: Tensor, images_seen: int = 0) -> dict[str, Tensor]:
        """Run all phases once; return each term's value by ``phase/term``, on the device.

        `images_seen` before this step decides learning rates that have a schedule.
        """
        batch_size = len(batch.images) * self.world.size
        self.step_number = images_seen // batch_size + 1
        self._schedule(images_seen, batch_size)
        contexts = [self._begin(*part) for part in self._micro_batches(batch, noise)]
        values: dict[str, Tensor] = {}
        for phase in self.system.phases:
            self.world.set_stage(f"step {self.step_number:,}, phase {phase.name}")
            losses = self._run(phase, contexts)
            self.watch.note(self.step_number, phase.name, losses, self._gradients(phase))
            self._update(phase)
            values |= {f"{phase.name}/{name}": value for name, value in losses.items()}
        self._after_phases()
        for average in self.system.emas:
            average.update(images_seen + batch_size, batch_size)
        return values

    def _begin(self, batch: Batch, noise: Tensor) -> Any:
        images = batch.images.contiguous(memory_format=self.layout)
        with self.precision.autocast():
            return self.system.begin(replace(batch, images=images), noise)

    def _run(self, phase: Phase, contexts: Sequence[Any]) -> dict[str, Tensor]:
        """Add up the gradients of a phase over the micro-batches; return the mean terms."""
        self._clear(phase)
        values: dict[str, Tensor] = {}
        for number, context in enumerate(contexts, 1):
            losses = self._backward(phase, context, number == len(contexts))
            for name, term in losses.items():
                share = term.value / len(contexts)
                values[name] = values[name] + share if name in values else share
        return values

    def _micro_batches(self, batch: Batch, noise: Tensor) -> list[tuple[Batch, Tensor]]:
        parts = self.config.accumulate
        if parts == 1:
            return [(batch, noise)]
        return list(zip(split_batch(batch, parts), noise.chunk(parts), strict=True))

    @property
    @abstractmethod
    def kind(self) -> str:
        """Name and version of the engine, for the run's record."""

    @abstractmethod
    def _schedule(self, images_seen: int, batch_size: int) -> None:
        """Make ready for a step: give every optimizer its learning rate."""

    @abstractmethod
    def _clear(self, phase: Phase) -> None:
        """Forget the gradients of the parts that a phase updates."""

    @abstractmethod
    def _backward(self, phase: Phase, context: Any, last: bool) -> Losses:
        """Add a micro-batch's share of the gradients; average over the ranks with the last."""

    @abstractmethod
    def _gradients(self, phase: Phase) -> dict[str, Tensor]:
        """Return what shows whether a phase's gradients are finite, by name."""

    @abstractmethod
    def _update(self, phase: Phase) -> None:
        """Clip the gradients of a phase and take its optimizers' step."""

    @abstractmethod
    def _after_phases(self) -> None:
        """Put right what phases left behind, before averages take it in."""

    @abstractmethod
    def read_moments(self) -> dict[str, Tensor]:
        """Return the optimizers' state by ``part/parameter/moment``, whole on rank 0.

        All ranks call it; the others may get less.
        """

    @abstractmethod
    def write_moments(self, moments: Moments) -> None:
        """Take over the optimizers' state of a checkpoint; all ranks call it."""


def lay_out(
    modules: nn.Module, layout: torch.memory_format, but: Iterable[nn.Parameter] = ()
) -> None:
    """Put the weights of convolutions in memory as `layout` says; their values stay.

    Args:
        modules: the networks.
        layout: of the weights, and by them of the images that pass through.
        but: weights that stay where they are.
    """
    kept = {id(parameter) for parameter in but}
    for parameter in modules.parameters():
        if parameter.dim() == 4 and id(parameter) not in kept:
            parameter.data = parameter.data.contiguous(memory_format=layout)


def split_batch(batch: Batch, parts: int) -> list[Batch]:
    """Cut a batch into equal parts, in order."""
    size = len(batch.images) // parts
    cuts = [slice(part * size, (part + 1) * size) for part in range(parts)]
    names = ("images", "tokens", "lengths", "classes", "positions", "captions", "keys")
    return [replace(batch, **{name: getattr(batch, name)[cut] for name in names}) for cut in cuts]
