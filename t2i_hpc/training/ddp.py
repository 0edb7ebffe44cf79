"""Runs a system's phases with torch's DistributedDataParallel.

DDP wants each backward to follow one forward of its wrapped module. A phase of a GAN enters
the discriminator several times, or differentiates it twice. So what is wrapped here is the
*loss of a phase*: DDP's forward computes it, its backward averages the gradients of the parts
that the phase updates, in buckets that travel while the rest is computed. The networks
themselves stay bare, and systems know nothing of ranks.
"""

from __future__ import annotations

import contextlib
import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from t2i_hpc.common.errors import RunError
from t2i_hpc.config.engine import EngineConfig
from t2i_hpc.systems.base import Losses, OptimizerSettings, Phase, System, trainable
from t2i_hpc.training.nonfinite import largest
from t2i_hpc.training.optimizers import build_optimizer, keep_schedule, read_moments, write_moments
from t2i_hpc.training.step import Engine, Moments, PhaseLoss, lay_out
from t2i_hpc.training.world import World

_SCALER = "scaler"
# A few small weights are copied; some systems use every parameter; the name that torch has now
# for not sending buffers still sends them once, and older torch does not know it.
_KNOWN_WARNINGS = (
    "Grad strides do not match",
    "`broadcast_buffers` is deprecated",
)


class DDPEngine(Engine):
    """Forward, backward, averaging and Adam for every phase of a system, whole on each rank."""

    def __init__(self, system: System, world: World, config: EngineConfig | None = None) -> None:
        super().__init__(system, world, config)
        lay_out(system.modules, self.layout)
        kind = self.config.optimizer
        self.optimizers = {
            name: build_optimizer(part, system.optimizers[name], kind, world.device)
            for name, part in system.trainable.items()
        }
        updates = {phase.updates for phase in system.phases}
        self.losses = {parts: self._wrap(parts) for parts in sorted(updates)}
        self.scalers = {parts: self.precision.scaler() for parts in sorted(updates)}
        self.skipped = self._skipped_before = 0
        self._buffers: dict[str, Tensor] = {}

    @property
    def kind(self) -> str:
        """Name and version."""
        return f"DDP of torch {torch.__version__}"

    def _schedule(self, images_seen: int, batch_size: int) -> None:
        for name, optimizer in self.optimizers.items():
            settings = self.system.optimizers[name]
            keep_schedule(optimizer, settings, self.config.schedule, images_seen, batch_size)
        if self.config.on_nonfinite == "skip":
            buffers = self.system.modules.named_buffers()
            self._buffers = {name: value.clone() for name, value in buffers}
            self._skipped_before = self.skipped

    def _clear(self, phase: Phase) -> None:
        # Not by the optimizer: its zero_grad has other arguments in apex and DeepSpeed.
        for name in phase.updates:
            clear_gradients(self.optimizers[name])

    def _backward(self, phase: Phase, context: Any, last: bool) -> Losses:
        module = self.losses[phase.updates]
        with contextlib.ExitStack() as stack:
            if isinstance(module, DistributedDataParallel) and not last:
                stack.enter_context(module.no_sync())
            with self.precision.autocast():
                loss, losses = module(phase.loss, context)
            loss = loss / self.config.accumulate
            scaler = self.scalers[phase.updates]
            (loss if scaler is None else scaler.scale(loss)).backward()
        terms: Losses = losses
        return terms

    def _gradients(self, phase: Phase) -> dict[str, Tensor]:
        for name in phase.updates:
            give_zeros(self.optimizers[name])
        if self.scalers[phase.updates] is not None:
            return {}  # an overflow is the scaler's business, and usual
        return {
            f"{part}.{name}": parameter.grad
            for part in phase.updates
            for name, parameter in trainable(self.system.trainable[part])
            if parameter.grad is not None
        }

    def _update(self, phase: Phase) -> None:
        scaler = self.scalers[phase.updates]
        if scaler is None and self.config.on_nonfinite == "skip" and self._skip(phase):
            return
        for name in phase.updates:
            optimizer, clip = self.optimizers[name], self._clip(self.system.optimizers[name])
            if scaler is not None:
                scaler.unscale_(optimizer)
            clip_gradient(optimizer, clip)
            if scaler is None:
                optimizer.step()
            else:
                scaler.step(optimizer)
        if scaler is not None:
            scaler.update()
            # A scale that fell to zero overflowed in every one of some 150 steps.
            scale = scaler.scale(torch.ones((), device=self.world.device))
            self.watch.note(self.step_number, phase.name, {"scaled by 1 / 0": 1 / scale}, {})

    def _clip(self, settings: OptimizerSettings) -> float | None:
        return self.config.clip if settings.clip is None else settings.clip

    def _skip(self, phase: Phase) -> bool:
        """Whether a phase's gradients, equal on all ranks, are not finite; counts such steps."""
        gradients = list(self._gradients(phase).values())
        if bool(torch.stack(largest(gradients)).isfinite().all()):
            return False
        self.skipped += 1
        self.watch.forget_last()  # this phase's: told and dealt with
        if self.skipped > self.config.skip_at_most:
            raise RunError(
                f"{self.skipped} updates had gradients that are not finite, the last in phase "
                f"{phase.name} of step {self.step_number}: engine.skip_at_most="
                f"{self.config.skip_at_most}; lower a learning rate or take precision=fp32"
            )
        return True

    def _after_phases(self) -> None:
        """Take running statistics back that the forward of a left-out update made no numbers of.

        Not before: the backward of later phases may still need them as they are.
        """
        if self.skipped == self._skipped_before:
            return
        for name, value in self.system.modules.named_buffers():
            if value.is_floating_point() and not bool(value.isfinite().all()):
                value.copy_(self._buffers[name])

    def read_moments(self) -> dict[str, Tensor]:
        """Return the optimizers' state by ``part/parameter/moment``."""
        found = {
            f"{part}/{name}": value
            for part, optimizer in self.optimizers.items()
            for name, value in read_moments(self.system.trainable[part], optimizer).items()
        }
        for parts, scaler in self.scalers.items():
            if scaler is not None:
                state = scaler.state_dict()
                values = torch.tensor([state["scale"], state["_growth_tracker"]])
                found[f"{_SCALER}/{'+'.join(parts)}"] = values
        return found

    def write_moments(self, moments: Moments) -> None:
        """Take over the optimizers' state of a checkpoint."""
        for part, optimizer in self.optimizers.items():
            own = {
                k.removeprefix(f"{part}/"): v
                for k, v in moments.items()
                if k.startswith(f"{part}/")
            }
            write_moments(self.system.trainable[part], optimizer, own)
        for parts, scaler in self.scalers.items():
            values = moments.get(f"{_SCALER}/{'+'.join(parts)}")
            if scaler is not None and values is not None:
                scale, tracker = values.tolist()
                scaler.load_state_dict(
                    {**scaler.state_dict(), "scale": scale, "_growth_tracker": int(tracker)}
                )

    def _wrap(self, updates: tuple[str, ...]) -> nn.Module:
        module = PhaseLoss([self.system.trainable[name] for name in updates])
        if self.world.size == 1:
            return module
        for known in _KNOWN_WARNINGS:
            warnings.filterwarnings("ignore", message=known)
        # The penalty reaches fewer parameters than the hinge loss, so DDP must look each time.
        # It would have to anyway: where it need not, it regroups the gradients after the first
        # step of a session, sums are taken in another order, and a resumed run would not be
        # equal to the bit. That all are used some time is no mistake then, of which it would
        # warn on standard error; with one that never is, it does not.
        idle = nn.Parameter(torch.zeros((), device=self.world.device))
        module.register_parameter("idle", idle)
        # Batch statistics are global already, so no buffers are sent. Gradients lie where they
        # are averaged: no second copy of them.
        return DistributedDataParallel(
            module,
            find_unused_parameters=True,
            broadcast_buffers=False,
            gradient_as_bucket_view=True,
        )


def give_zeros(optimizer: torch.optim.Optimizer) -> None:
    """Give parameters that a loss does not reach a gradient of zero instead of none.

    The reference's Adam sees zeros there: its moments decay and its step counts. Skipping the
    parameter would be another training (reference: five biases in the gradient penalty), and
    one that is skipped on one rank alone would part the replicas.
    """
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)


def clear_gradients(optimizer: torch.optim.Optimizer) -> None:
    """Forget the gradients of an optimizer's parameters, and their memory."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = None


def clip_gradient(optimizer: torch.optim.Optimizer, norm: float | None) -> None:
    """Scale the whole gradient of an optimizer's parameters down to `norm` where it is longer."""
    if norm is not None:
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        nn.utils.clip_grad_norm_(parameters, norm)
