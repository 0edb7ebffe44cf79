"""The hooks of a training step with torch's DistributedDataParallel, whole Adam on each rank.

DDP wants each backward to follow one forward of its wrapped module. A phase of a GAN enters
the discriminator several times, or differentiates it twice. So what is wrapped here is the
*loss of a phase*: DDP's forward computes it, its backward averages the gradients of the modules
that the phase updates, in buckets that travel while the rest is computed. The networks
themselves stay bare, and systems know nothing of ranks.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from t2i_hpc.common.errors import RunError
from t2i_hpc.config.engine import EngineConfig
from t2i_hpc.systems.base import Loss, Losses, Phase, System, trainable
from t2i_hpc.training.buckets import lay_out, reach, record_arrivals, reduce_in_order
from t2i_hpc.training.optimizers import (
    BUCKETS,
    SCALER,
    build_optimizer,
    learning_rate,
    moments_of,
    read_moments,
    reset_moments,
    restarts,
    write_moments,
)
from t2i_hpc.training.precision import norms
from t2i_hpc.training.step import Moments, PhaseLoss, Strategy, Values, set_memory_format
from t2i_hpc.training.world import World

# A few small weights are copied; some systems use every parameter; the name that torch has now
# for not sending buffers still sends them once, and older torch does not know it.
_KNOWN_WARNINGS = (
    "Grad strides do not match",
    "`broadcast_buffers` is deprecated",
)


class DDPStrategy(Strategy):
    """Gradients are averaged by all-reduce; every rank takes the same optimizer steps."""

    def __init__(self, system: System, world: World, config: EngineConfig | None = None) -> None:
        super().__init__(system, world, config)
        set_memory_format(system.modules, self.layout)
        kind = self.config.optimizer
        self.optimizers = {
            name: build_optimizer(module, system.optimizers[name], kind, world.device)
            for name, module in system.trainable.items()
        }
        updates = sorted({phase.updates for phase in system.phases})
        self.losses = {names: self._wrap(names) for names in updates}
        # Of buckets that are laid out for good, by places in the list of parameters.
        self._orders: dict[tuple[str, ...], Tensor] = {}
        self.scalers = {names: self.precision.scaler() for names in updates}
        self.skipped = self._skipped_before = 0
        self._buffers: dict[str, Tensor] = {}

    def _wrap(self, updates: tuple[str, ...]) -> nn.Module:
        module = PhaseLoss([self.system.trainable[name] for name in updates])
        if self.world.size == 1:
            return module
        for known in _KNOWN_WARNINGS:
            warnings.filterwarnings("ignore", message=known)
        # Batch statistics are global already, so no buffers are sent. Gradients are views of the
        # buckets that are averaged: no second copy of them. Every parameter is reached (see
        # :func:`reach`), so DDP does not search each graph for those that are not.
        replicated = DistributedDataParallel(
            module, broadcast_buffers=False, gradient_as_bucket_view=True
        )
        if self.config.gradient_compression == "bf16":
            from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook

            replicated.register_comm_hook(None, bf16_compress_hook)
        return replicated

    @property
    def kind(self) -> str:
        """Name and version."""
        return f"DDP of torch {torch.__version__}"

    def schedule(self, images_seen: int, batch_size: int) -> None:
        """Set learning rates; with on_nonfinite=skip also keep the buffers as they are."""
        for name, optimizer in self.optimizers.items():
            settings = self.system.optimizers[name]
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(settings, self.config.schedule, images_seen)
            if restarts(settings, images_seen, batch_size):
                reset_moments(optimizer)
        if self.config.on_nonfinite == "skip":
            buffers = self.system.modules.named_buffers()
            self._buffers = {name: value.clone() for name, value in buffers}
            self._skipped_before = self.skipped

    def zero_grad(self, phase: Phase) -> None:
        """Set gradients to None, those of other phases too: nobody reads them any more."""
        # Not by the optimizer: its zero_grad has other arguments in apex and DeepSpeed.
        for optimizer in self.optimizers.values():
            for parameter in _parameters_of(optimizer):
                parameter.grad = None

    @contextmanager
    def all_reduce(self, phase: Phase, last: bool) -> Iterator[None]:
        """Let DDP send its buckets within the last backward, while that still computes."""
        module = self.losses[phase.updates]
        if not isinstance(module, DistributedDataParallel):
            yield
        elif not last:
            with module.no_sync():
                yield
        elif phase.updates in self._orders:
            yield
        else:
            parameters = self._parameters(phase.updates)
            with module.no_sync(), record_arrivals(parameters) as order:
                yield
            reduce_in_order(module, order)
            places = {id(parameter): place for place, parameter in enumerate(parameters)}
            self._orders[phase.updates] = torch.tensor([places[id(p)] for p in order])
        if last:
            # Parameters that a loss does not reach get a gradient of zero instead of none. The
            # reference's Adam sees zeros there: its moments decay and its step counts. Skipping
            # the parameter would be another training (reference: five biases in the gradient
            # penalty), and one that is skipped on one rank alone would let the replicas diverge.
            for parameter in self._parameters(phase.updates):
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)

    def forward(self, phase: Phase, loss: Loss, context: Any) -> tuple[Tensor, Losses]:
        """Enter the wrapped loss under autocast."""
        with self.precision.autocast():
            value, terms = self.losses[phase.updates](loss, context)
        return value, terms

    def backward(self, phase: Phase, loss: Tensor) -> None:
        """Differentiate the loss, scaled up where gradients are float16."""
        self.world.mark_device("backward")  # no sync; collectives are behind this mark
        loss = loss / self.config.accumulate
        if self.world.size > 1:
            loss = reach(loss, self._parameters(phase.updates))
        scaler = self.scalers[phase.updates]
        (loss if scaler is None else scaler.scale(loss)).backward()

    def record(self, phase: Phase, means: Values) -> None:
        """Record loss terms and gradients; with fp16 the scaler deals with what overflows."""
        scaler = self.scalers[phase.updates]
        scale = None
        if scaler is not None:  # on the device: no sync
            scale = scaler.scale(torch.ones((), device=self.world.device))
        gradients = self.gradients(phase)
        self.nonfinite.record(self.step_number, phase.name, means, gradients, scale)

    def gradients(self, phase: Phase) -> dict[str, Tensor]:
        """Return gradients by ``module.parameter``, with fp16 times the loss scale."""
        return {
            f"{name}.{key}": parameter.grad
            for name in phase.updates
            for key, parameter in trainable(self.system.trainable[name])
            if parameter.grad is not None
        }

    def skips(self, phase: Phase) -> bool:
        """Whether gradients, equal on all ranks, hold NaN or Inf; counts such updates.

        Raises:
            RunError: there were more than ``engine.skip_at_most``.
        """
        if self.config.on_nonfinite != "skip" or self.scalers[phase.updates] is not None:
            return False
        gradients = list(self.gradients(phase).values())
        if bool(torch.stack(norms(gradients)).isfinite().all()):
            return False
        self.skipped += 1
        self.nonfinite.forget_last()  # this phase's: dealt with
        if self.skipped > self.config.skip_at_most:
            raise RunError(
                f"{self.skipped} updates had gradients that are not finite, the last in phase "
                f"{phase.name} of step {self.step_number}: engine.skip_at_most="
                f"{self.config.skip_at_most}; lower a learning rate or take precision=fp32"
            )
        return True

    def clip(self, phase: Phase) -> None:
        """Scale each module's gradient down, after the loss scale was taken out of it."""
        scaler = self.scalers[phase.updates]
        for name in phase.updates:
            optimizer, limit = self.optimizers[name], self.system.optimizers[name].clip
            limit = self.config.clip if limit is None else limit
            if scaler is not None:
                scaler.unscale_(optimizer)
            if limit is not None:
                nn.utils.clip_grad_norm_(_parameters_of(optimizer), limit)

    def optimizer_step(self, phase: Phase) -> None:
        """Take Adam's step; with fp16 an optimizer whose gradients overflowed takes none."""
        scaler = self.scalers[phase.updates]
        for name in phase.updates:
            if scaler is None:
                self.optimizers[name].step()
            else:
                scaler.step(self.optimizers[name])
        if scaler is not None:
            scaler.update()
            # A scale that fell to zero overflowed in every one of some 150 steps.
            scale = scaler.scale(torch.ones((), device=self.world.device))
            self.nonfinite.record(self.step_number, phase.name, {"scaled by 1 / 0": 1 / scale}, {})

    def repair(self) -> None:
        """Restore running statistics that the forward of a skipped update made NaN or Inf.

        Not before: the backward of later phases may still need them as they are.
        """
        if self.skipped == self._skipped_before:
            return
        for name, value in self.system.modules.named_buffers():
            if value.is_floating_point() and not bool(value.isfinite().all()):
                value.copy_(self._buffers[name])

    def read_moments(self) -> dict[str, Tensor]:
        """Return the optimizers' state by ``module/parameter/moment``."""
        found = {
            f"{name}/{key}": value
            for name, optimizer in self.optimizers.items()
            for key, value in read_moments(self.system.trainable[name], optimizer).items()
        }
        for names, scaler in self.scalers.items():
            if scaler is not None:
                state = scaler.state_dict()
                values = torch.tensor([state["scale"], state["_growth_tracker"]])
                found[f"{SCALER}/{'+'.join(names)}"] = values
        orders = {f"{BUCKETS}/{'+'.join(names)}": order for names, order in self._orders.items()}
        return found | orders

    def write_moments(self, moments: Moments) -> None:
        """Load the optimizers' state of a checkpoint, and the order of its buckets."""
        for name, optimizer in self.optimizers.items():
            write_moments(self.system.trainable[name], optimizer, moments_of(name, moments))
        for names, scaler in self.scalers.items():
            values = moments.get(f"{SCALER}/{'+'.join(names)}")
            if scaler is not None and values is not None:
                scale, tracker = values.tolist()
                scaler.load_state_dict(
                    {**scaler.state_dict(), "scale": scale, "_growth_tracker": int(tracker)}
                )

        for names, module in self.losses.items():
            order = moments.get(f"{BUCKETS}/{'+'.join(names)}")
            if order is not None and isinstance(module, DistributedDataParallel):
                parameters = self._parameters(names)
                lay_out(module, [parameters[place] for place in order.tolist()])
                self._orders[names] = order

    def _parameters(self, names: Sequence[str]) -> list[nn.Parameter]:
        return [p for name in names for p in _parameters_of(self.optimizers[name])]


def _parameters_of(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]
