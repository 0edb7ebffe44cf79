"""The hooks of a training step with DeepSpeed's ZeRO, bit-identical to DDP.

Each set of modules that is updated together gets a DeepSpeed engine. Networks are entered bare,
as systems do, and only backward and step go through the engine: entering its wrapper would
break a gradient that is differentiated again. Adam is torch's own, over float32 weights; half
precision is autocast's business, as with DDP. Everything that DeepSpeed would guess is written
out: it clips gradients unless it is told not to, and asks the environment for ranks that the
world knows already.

ZeRO partitions moments (stage 1) and gradients (2) over the ranks. Moments are read and written
whole, by parameter name, so a run resumes with DDP, another stage or another number of ranks.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import warnings
from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from t2i_hpc.config.engine import EngineConfig
from t2i_hpc.systems.base import Loss, Losses, Phase, System, trainable
from t2i_hpc.training.deepspeed_build import compiling
from t2i_hpc.training.optimizers import (
    MOMENTS,
    build_optimizer,
    learning_rate,
    moments_of,
    read_moments,
    read_step,
    reset_moments,
    restarts,
    write_moments,
    write_step,
)
from t2i_hpc.training.step import Moments, PhaseLoss, Strategy, set_memory_format
from t2i_hpc.training.world import World

_NEVER = 0.0  # DeepSpeed clips at 1.0 unless it is told not to


class DeepSpeedStrategy(Strategy):
    """ZeRO stage 0, 1 or 2: moments (1) and gradients (2) are partitioned over the ranks."""

    def __init__(self, system: System, world: World, config: EngineConfig) -> None:
        super().__init__(system, world, config)
        deepspeed = import_deepspeed(world)
        self._version = deepspeed.__version__
        self.groups = {
            updates: ModuleGroup(deepspeed, system, updates, world, config)
            for updates in sorted({phase.updates for phase in system.phases})
        }
        if config.channels_last:  # not before: DeepSpeed starts with contiguous weights alone
            partitioned = [group for group in self.groups.values() if group.partitioned]
            sliced = [p for group in partitioned for p in group.parameters.values()]
            set_memory_format(system.modules, self.layout, but=sliced)
            for group in partitioned:
                take_channels_last(group.loss)

    @property
    def kind(self) -> str:
        """Name, version and stage."""
        return f"DeepSpeed {self._version}, ZeRO {self.config.zero_stage}"

    def schedule(self, images_seen: int, batch_size: int) -> None:
        """Set learning rates; forget the moments that restart."""
        for group in self.groups.values():
            for name, adam in zip(group.updates, group.optimizer.param_groups, strict=True):
                settings = self.system.optimizers[name]
                adam["lr"] = learning_rate(settings, self.config.schedule, images_seen)
            if restarts(self.system.optimizers[group.updates[0]], images_seen, batch_size):
                reset_moments(group.optimizer)

    def zero_grad(self, phase: Phase) -> None:
        """Nothing: DeepSpeed's step leaves no gradients behind."""

    @contextlib.contextmanager
    def all_reduce(self, phase: Phase, last: bool) -> Iterator[None]:
        """Let DeepSpeed average gradients in the last backward, which it cannot count itself."""
        engine = self.groups[phase.updates].engine
        engine.set_gradient_accumulation_boundary(last)
        yield
        if not last:
            engine.step()  # counts the backward, steps nothing

    def forward(self, phase: Phase, loss: Loss, context: Any) -> tuple[Tensor, Losses]:
        """Enter the bare loss under autocast."""
        with self.precision.autocast():
            value, terms = self.groups[phase.updates].loss(loss, context)
        return value, terms

    def backward(self, phase: Phase, loss: Tensor) -> None:
        """Differentiate the loss, which DeepSpeed divides by the number of micro-batches."""
        self.world.mark_device("backward")  # no sync; collectives are behind this mark
        group = self.groups[phase.updates]
        group.engine.backward(add_zeros(loss, list(group.parameters.values())))

    def gradients(self, phase: Phase) -> dict[str, Tensor]:
        """Return whole gradients; none where they are partitioned (see :meth:`optimizer_step`)."""
        group = self.groups[phase.updates]
        if group.partitioned:
            return {}
        return {name: p.grad for name, p in group.parameters.items() if p.grad is not None}

    def clip(self, phase: Phase) -> None:
        """Nothing: DeepSpeed's step clips, by the norm over all partitions."""

    def optimizer_step(self, phase: Phase) -> None:
        """Clip, take Adam's step of this rank's partition, and gather the weights."""
        engine = self.groups[phase.updates].engine
        engine.step()
        norm = engine.get_global_grad_norm()  # infinite where DeepSpeed skipped the update
        if norm is not None:
            value = torch.as_tensor(norm, device=self.world.device)
            name = "+".join(phase.updates)
            self.nonfinite.record(self.step_number, phase.name, {}, {name: value})

    def repair(self) -> None:
        """Nothing: no update is skipped."""

    def read_moments(self) -> dict[str, Tensor]:
        """Return the optimizers' state by ``module/parameter/moment``, gathered from the ranks."""
        return {
            f"{name}/{key}": value
            for group in self.groups.values()
            for name in group.updates
            for key, value in group.read(self.system.trainable[name]).items()
        }

    def write_moments(self, moments: Moments) -> None:
        """Load the optimizers' state of a checkpoint, and take over the weights as they are now."""
        for group in self.groups.values():
            if group.partitioned:
                group.engine.optimizer.refresh_fp32_params()
            for name in group.updates:
                if own := moments_of(name, moments):
                    group.write(self.system.trainable[name], own)


class ModuleGroup:
    """Modules that are updated together: their loss, and DeepSpeed's engine of them."""

    def __init__(
        self,
        deepspeed: Any,
        system: System,
        updates: tuple[str, ...],
        world: World,
        config: EngineConfig,
    ) -> None:
        self.updates = updates
        self.loss = PhaseLoss([system.trainable[name] for name in updates])
        self.parameters = {
            f"{name}.{key}": p for name in updates for key, p in trainable(system.trainable[name])
        }
        self.partitioned = config.zero_stage > 0
        optimizer, *others = [
            build_optimizer(
                system.trainable[name], system.optimizers[name], config.optimizer, world.device
            )
            for name in updates
        ]
        for other in others:
            optimizer.add_param_group(other.param_groups[0])
        clip = system.optimizers[updates[0]].clip
        numbers = sum(parameter.numel() for parameter in self.parameters.values())
        self.engine = deepspeed.initialize(
            args=_device_of(world),
            model=self.loss,
            optimizer=optimizer,
            config=deepspeed_config(config, world, config.clip if clip is None else clip, numbers),
            dist_init_required=False,
        )[0]
        self.optimizer: torch.optim.Optimizer = (
            self.engine.optimizer.optimizer if self.partitioned else optimizer
        )

    def read(self, module: nn.Module) -> dict[str, Tensor]:
        """Return a module's moments, whole on every rank."""
        if not self.partitioned:
            return read_moments(module, self.optimizer)
        if not any(MOMENTS[0] in state for state in self.optimizer.state.values()):
            return {}
        self._link_moments()
        count = read_step(self.optimizer, next(iter(self.optimizer.state.values())))
        found: dict[str, Tensor] = {}
        for name, parameter in trainable(module):
            found |= {f"{name}/{key}": _linked(parameter).get_full_hp_param(key) for key in MOMENTS}
            found[f"{name}/step"] = count.clone()
        return found

    def write(self, module: nn.Module, moments: dict[str, Tensor]) -> None:
        """Load a module's moments, partitioned over the ranks where ZeRO keeps them so."""
        if not self.partitioned:
            write_moments(module, self.optimizer, moments)
            return
        self._begin_moments()
        for name, parameter in trainable(module):
            for key in MOMENTS:
                value = moments[f"{name}/{key}"].to(parameter.device)
                _linked(parameter).set_full_hp_param(value, key)
            for state in self.optimizer.state.values():
                write_step(self.optimizer, state, moments[f"{name}/step"])

    def _begin_moments(self) -> None:
        """Make the moments that DeepSpeed makes at its first step."""
        for flat in self.engine.optimizer.single_partition_of_fp32_groups:
            state = self.optimizer.state[flat]
            if not state:
                state |= {key: torch.zeros_like(flat) for key in MOMENTS}
                write_step(self.optimizer, state, torch.zeros(()))
        self._link_moments()

    def _link_moments(self) -> None:
        """Let each parameter know which slice of the flat moments is its own.

        DeepSpeed (0.19.8) does so within its first step, before groups but the first have any.
        """
        zero = self.engine.optimizer
        zero._hp_optimizer_states_linked = False
        zero._lazy_init_hp_params_optimizer_state()


def _linked(parameter: nn.Parameter) -> Any:
    """Return a parameter with the methods that DeepSpeed gives it at run time."""
    return parameter


class _AddZeros(torch.autograd.Function):
    """The identity of a loss, whose backward also gives parameters gradients of zero."""

    @staticmethod
    def forward(ctx: Any, loss: Tensor, *parameters: Tensor) -> Tensor:
        ctx.save_for_backward(*parameters)
        return loss.view_as(loss)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, ...]:
        return gradient, *(torch.zeros_like(parameter) for parameter in ctx.saved_tensors)


def add_zeros(loss: Tensor, parameters: Sequence[nn.Parameter]) -> Tensor:
    """Return `loss`, whose backward gives zeros to those of `parameters` that it does not reach.

    So each has a gradient, on every rank and in every phase: Adam counts the step as the
    reference's does, and no rank waits for what another does not send. DeepSpeed takes a gradient
    by a hook that is called only where there is one. The search takes 0.1 ms in SSA-GAN.
    """
    seen: set[Any] = set()
    nodes: list[Any] = [loss.grad_fn] if loss.requires_grad else []
    while nodes:
        following = {node for node, _ in nodes.pop().next_functions if node is not None} - seen
        seen |= following
        nodes += following
    reached = {id(node.variable) for node in seen if hasattr(node, "variable")}
    rest = [parameter for parameter in parameters if id(parameter) not in reached]
    result: Tensor = _AddZeros.apply(loss, *rest)
    return result


def deepspeed_config(
    config: EngineConfig, world: World, clip: float | None, numbers: int
) -> dict[str, Any]:
    """Return DeepSpeed's configuration; everything that it would guess is written out.

    Args:
        config: of the engine.
        world: this rank's place.
        clip: of the gradient's norm.
        numbers: in all parameters of the modules, the size of DeepSpeed's buckets. Its own guess,
            5·10⁸, would take 2 GB of a GPU for each group of modules.
    """
    bucket = numbers + numbers % 2  # DeepSpeed aligns partitions to two numbers
    return {
        "train_micro_batch_size_per_gpu": config.batch_size // world.size // config.accumulate,
        "gradient_accumulation_steps": config.accumulate,
        "gradient_clipping": _NEVER if clip is None else clip,
        "zero_optimization": {
            "stage": config.zero_stage,
            "overlap_comm": False,
            "reduce_bucket_size": bucket,
            "allgather_bucket_size": bucket,
        },
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 2**31,
        "wall_clock_breakdown": False,
    }


def import_deepspeed(world: World) -> Any:
    """Import DeepSpeed, after everything it wants is there.

    Raises:
        ConfigurationError: what it compiles cannot be written where it belongs.
    """
    if world.device.type == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"
    for name, value in {
        "RANK": world.rank,
        "WORLD_SIZE": world.size,
        "LOCAL_RANK": world.local_rank,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": 0,
    }.items():
        os.environ.setdefault(name, str(value))
    if not dist.is_initialized():  # DeepSpeed wants a group even of one
        dist.init_process_group(
            "nccl" if world.device.type == "cuda" else "gloo",
            store=torch._C._distributed_c10d.HashStore(),
            rank=0,
            world_size=1,
        )
    # What it prints of its extensions would stand in the middle of the progress line.
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", message=".*all_gather_into_tensor. is deprecated")
    with contextlib.redirect_stdout(io.StringIO()), compiling():
        import deepspeed

        deepspeed.init_distributed(auto_mpi_discovery=False, dist_init_required=False)
    return deepspeed


def _device_of(world: World) -> SimpleNamespace | None:
    """Tell DeepSpeed this rank's GPU: its own guess is wrong where a rank sees no GPU but one."""
    index = world.device.index
    return None if index is None else SimpleNamespace(device_rank=index)


def take_channels_last(network: nn.Module) -> None:
    """Let convolutions take images as (B, H, W, C) in memory, whatever their weights' layout.

    ZeRO's weights and gradients are slices of one buffer, so they are contiguous.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_pre_hook(_to_channels_last)


def _to_channels_last(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(value.contiguous(memory_format=torch.channels_last) for value in inputs)
