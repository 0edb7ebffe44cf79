"""Runs a system's phases with torch's DistributedDataParallel.

DDP wants each backward to follow one forward of its wrapped module. A phase of a GAN enters
the discriminator several times, or differentiates it twice. So what is wrapped here is the
*loss of a phase*: DDP's forward computes it, its backward averages the gradients of the parts
that the phase updates. The networks themselves stay bare, and systems know nothing of ranks.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from t2i_hpc.common.step import Batch, Losses, OptimiserSettings, Phase, System, total
from t2i_hpc.engine.schedule import keep_schedule
from t2i_hpc.engine.world import World


class PhaseLoss(nn.Module):
    """The parts a phase updates, with the loss as forward."""

    def __init__(self, parts: list[nn.Module]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)

    def forward(self, loss: Callable[[Any], Losses], context: Any) -> tuple[Tensor, Losses]:
        """Return the weighted sum (with graph) and the single terms."""
        losses = loss(context)
        return total(losses), {
            name: type(term)(term.value.detach(), term.weight) for name, term in losses.items()
        }


class DDPEngine:
    """Forward, backward, averaging and Adam for every phase of a system.

    Args:
        system: what to run; its modules must already lie on the world's device.
        world: this rank's place.
        precision: fp32, or bf16 for autocast over float32 weights.
        channels_last: whether images and weights lie as (B, H, W, C) in memory.
    """

    def __init__(
        self, system: System, world: World, precision: str, channels_last: bool = False
    ) -> None:
        self.system = system
        self.world = world
        self.autocast = precision == "bf16"
        self.layout = torch.channels_last if channels_last else torch.contiguous_format
        if channels_last:
            system.modules.to(memory_format=torch.channels_last)
        self.optimisers = {
            name: build_optimiser(part, system.optimisers[name])
            for name, part in system.parts.items()
        }
        self.losses: Mapping[tuple[str, ...], nn.Module] = {
            phase.updates: self._wrap(phase.updates) for phase in system.phases
        }

    def step(self, batch: Batch, noise: Tensor, images_seen: int = 0) -> dict[str, Tensor]:
        """Run all phases once; return each term's value by ``phase/term``, on the device.

        `images_seen` before this step decides learning rates that have a schedule.
        """
        batch_size = len(batch.images) * self.world.size
        for name, optimiser in self.optimisers.items():
            keep_schedule(optimiser, self.system.optimisers[name], images_seen, batch_size)
        images = batch.images.contiguous(memory_format=self.layout)
        with self._precision():
            context = self.system.begin(replace(batch, images=images), noise)
        values: dict[str, Tensor] = {}
        for phase in self.system.phases:
            losses = self._run(phase, context)
            values |= {f"{phase.name}/{name}": term.value for name, term in losses.items()}
        for average in self.system.averages:
            average.update(images_seen + batch_size, batch_size)
        return values

    def _run(self, phase: Phase, context: Any) -> Losses:
        for name in phase.updates:
            self.optimisers[name].zero_grad(set_to_none=True)
        with self._precision():
            loss, losses = self.losses[phase.updates](phase.loss, context)
        loss.backward()
        for name in phase.updates:
            give_zeros(self.optimisers[name])
            clip_gradient(self.optimisers[name], self.system.optimisers[name].clip)
            self.optimisers[name].step()
        terms: Losses = losses
        return terms

    def _wrap(self, updates: tuple[str, ...]) -> nn.Module:
        module = PhaseLoss([self.system.parts[name] for name in updates])
        if self.world.size == 1:
            return module
        # A few small weights are copied, and some systems use every parameter: no errors.
        for known in ("Grad strides do not match", "find_unused_parameters=True was specified"):
            warnings.filterwarnings("ignore", message=known)
        # The penalty reaches fewer parameters than the hinge loss, so DDP must look each
        # time; batch statistics are global already, so no buffers need to be sent.
        return DistributedDataParallel(module, find_unused_parameters=True, broadcast_buffers=False)

    def _precision(self) -> torch.autocast:
        return torch.autocast(
            self.world.device.type, torch.bfloat16, enabled=self.autocast, cache_enabled=False
        )


def build_optimiser(part: nn.Module, settings: OptimiserSettings) -> torch.optim.Adam:
    """Build Adam over the part's trainable parameters."""
    trainable = [p for p in part.parameters() if p.requires_grad]
    return torch.optim.Adam(
        trainable, lr=settings.learning_rate, betas=settings.betas, eps=settings.epsilon
    )


def give_zeros(optimiser: torch.optim.Optimizer) -> None:
    """Give parameters that a loss does not reach a gradient of zero instead of none.

    The reference's Adam sees zeros there: its moments decay and its step counts. Skipping the
    parameter would be another training (reference: five biases in the gradient penalty).
    """
    for group in optimiser.param_groups:
        for parameter in group["params"]:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)


def clip_gradient(optimiser: torch.optim.Optimizer, norm: float | None) -> None:
    """Scale the whole gradient of an optimiser's parameters down to `norm` where it is longer."""
    if norm is not None:
        parameters = [p for group in optimiser.param_groups for p in group["params"]]
        nn.utils.clip_grad_norm_(parameters, norm)
