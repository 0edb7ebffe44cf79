"""What DeepSpeed is told and needs, and what engine=deepspeed refuses.

Everything that it would guess is written out: it clips gradients unless it is told not to, and
asks the environment for ranks that the world knows already.

Parts that are updated together, in a DeepSpeed engine of their own.

With ZeRO an optimizer's moments lie in pieces on the ranks. They leave whole and enter whole, by
parameter name.

Runs a system's phases with DeepSpeed's ZeRO, equal to DDP number for number.

Each set of parts that is updated together gets a DeepSpeed engine. Networks are entered bare,
as systems do, and only backward and step go through the engine: entering its wrapper would
break a gradient that is differentiated again. Adam is torch's own, over float32 weights; half
precision is autocast's business, as with DDP.

Moments leave and enter by parameter name, so a run goes on with DDP, another stage or another
number of ranks.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import warnings
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from t2i_hpc.config.engine import EngineConfig
from t2i_hpc.runs.checkpoint import MOMENTS
from t2i_hpc.systems.base import Losses, Phase, System, trainable
from t2i_hpc.training.deepspeed_build import compiling
from t2i_hpc.training.optimizers import (
    build_optimizer,
    forget_moments,
    learning_rate,
    read_moments,
    read_step,
    restarts,
    write_moments,
    write_step,
)
from t2i_hpc.training.step import Engine, Moments, PhaseLoss, lay_out
from t2i_hpc.training.world import World

_NEVER = 0.0  # DeepSpeed clips at 1.0 unless it is told not to


def settings(config: EngineConfig, world: World, clip: float | None) -> dict[str, Any]:
    """Return DeepSpeed's configuration; everything that it would guess is written out."""
    return {
        "train_micro_batch_size_per_gpu": config.batch_size // world.size // config.accumulate,
        "gradient_accumulation_steps": config.accumulate,
        "gradient_clipping": _NEVER if clip is None else clip,
        "zero_optimization": {"stage": config.zero_stage, "overlap_comm": False},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 2**31,
        "wall_clock_breakdown": False,
    }


def prepared_deepspeed(world: World) -> Any:
    """Import DeepSpeed, after everything it wants is there.

    Raises:
        ConfigurationError: what it compiles cannot be written where it belongs.
    """
    if world.device.type == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"
    for name, value in _environment(world):
        os.environ.setdefault(name, value)
    if not dist.is_initialized():  # DeepSpeed wants a group even of one
        dist.init_process_group(
            "nccl" if world.device.type == "cuda" else "gloo",
            store=torch._C._distributed_c10d.HashStore(),
            rank=0,
            world_size=1,
        )
    # What it says of its small parts would stand in the middle of the progress line.
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", message=".*all_gather_into_tensor. is deprecated")
    with contextlib.redirect_stdout(io.StringIO()), compiling():
        import deepspeed

        deepspeed.init_distributed(auto_mpi_discovery=False, dist_init_required=False)
    return deepspeed


def _environment(world: World) -> Iterator[tuple[str, str]]:
    yield "RANK", str(world.rank)
    yield "WORLD_SIZE", str(world.size)
    yield "LOCAL_RANK", str(world.local_rank)
    yield "MASTER_ADDR", "127.0.0.1"
    yield "MASTER_PORT", "0"


class Team:
    """Parts that are updated together: their loss, and DeepSpeed's engine of them."""

    def __init__(
        self,
        deepspeed: Any,
        system: System,
        updates: tuple[str, ...],
        world: World,
        config: EngineConfig,
    ) -> None:
        self.updates = updates
        self.loss = PhaseLoss([system.trainable[name] for name in updates], anchored=True)
        self.trained = {
            f"{part}.{name}": p for part in updates for name, p in trainable(system.trainable[part])
        }
        self.partitioned = config.zero_stage > 0
        groups = [
            build_optimizer(
                system.trainable[name], system.optimizers[name], config.optimizer, world.device
            )
            for name in updates
        ]
        optimizer = groups[0]
        for other in groups[1:]:
            optimizer.add_param_group(other.param_groups[0])
        clip = system.optimizers[updates[0]].clip
        self.engine = deepspeed.initialize(
            args=_device_of(world),
            model=self.loss,
            optimizer=optimizer,
            config=settings(config, world, config.clip if clip is None else clip),
            dist_init_required=False,
        )[0]
        self.optimizer: torch.optim.Optimizer = (
            self.engine.optimizer.optimizer if self.partitioned else optimizer
        )

    def gradients(self) -> dict[str, Tensor]:
        """Return the gradients by ``part.parameter``; stage 0 keeps them whole."""
        return {name: p.grad for name, p in self.trained.items() if p.grad is not None}

    def forget(self) -> None:
        """Let the moments begin anew."""
        forget_moments(self.optimizer)

    def refresh(self) -> None:
        """Take over weights that were loaded into the networks."""
        if self.partitioned:
            self.engine.optimizer.refresh_fp32_params()

    def read(self, part: nn.Module) -> dict[str, Tensor]:
        """Return a part's moments, whole on every rank."""
        if not self.partitioned:
            return read_moments(part, self.optimizer)
        if not any(MOMENTS[0] in state for state in self.optimizer.state.values()):
            return {}
        self._find_moments()
        count = read_step(self.optimizer, next(iter(self.optimizer.state.values())))
        found: dict[str, Tensor] = {}
        for name, parameter in trainable(part):
            found |= {
                f"{name}/{key}": _fragmented(parameter).get_full_hp_param(key) for key in MOMENTS
            }
            found[f"{name}/step"] = count.clone()
        return found

    def write(self, part: nn.Module, moments: dict[str, Tensor]) -> None:
        """Deal a part's moments out."""
        if not self.partitioned:
            write_moments(part, self.optimizer, moments)
            return
        self._begin_moments()
        for name, parameter in trainable(part):
            for key in MOMENTS:
                value = moments[f"{name}/{key}"].to(parameter.device)
                _fragmented(parameter).set_full_hp_param(value, key)
            for state in self.optimizer.state.values():
                write_step(self.optimizer, state, moments[f"{name}/step"])

    def _begin_moments(self) -> None:
        """Make the moments that DeepSpeed makes at its first step."""
        for flat in self.engine.optimizer.single_partition_of_fp32_groups:
            state = self.optimizer.state[flat]
            if not state:
                state |= {key: torch.zeros_like(flat) for key in MOMENTS}
                write_step(self.optimizer, state, torch.zeros(()))
        self._find_moments()

    def _find_moments(self) -> None:
        """Let each parameter know where its moments lie.

        DeepSpeed (0.19.8) does so within its first step, before groups but the first have any.
        """
        zero = self.engine.optimizer
        zero._hp_optimizer_states_linked = False
        zero._lazy_init_hp_params_optimizer_state()


def _fragmented(parameter: nn.Parameter) -> Any:
    """Return a parameter as DeepSpeed extends it: it knows where its moments lie."""
    return parameter


def _device_of(world: World) -> SimpleNamespace | None:
    """Tell DeepSpeed this rank's GPU: its own guess is wrong where a rank sees no GPU but one."""
    index = world.device.index
    return None if index is None else SimpleNamespace(device_rank=index)


class DeepSpeedEngine(Engine):
    """ZeRO stage 0, 1 or 2: moments (1) and gradients (2) are dealt out over the ranks."""

    def __init__(self, system: System, world: World, config: EngineConfig) -> None:
        super().__init__(system, world, config)
        deepspeed = prepared_deepspeed(world)
        self._version = deepspeed.__version__
        self.teams = {
            updates: Team(deepspeed, system, updates, world, config)
            for updates in sorted({phase.updates for phase in system.phases})
        }
        if config.channels_last:  # not before: DeepSpeed starts with contiguous weights alone
            partitioned = [team for team in self.teams.values() if team.partitioned]
            sliced = [p for team in partitioned for p in team.trained.values()]
            lay_out(system.modules, self.layout, but=sliced)
            for team in partitioned:
                take_channels_last(team.loss)

    @property
    def kind(self) -> str:
        """Name, version and stage."""
        return f"DeepSpeed {self._version}, ZeRO {self.config.zero_stage}"

    def _schedule(self, images_seen: int, batch_size: int) -> None:
        for team in self.teams.values():
            for name, group in zip(team.updates, team.optimizer.param_groups, strict=True):
                settings = self.system.optimizers[name]
                group["lr"] = learning_rate(settings, self.config.schedule, images_seen)
            if restarts(self.system.optimizers[team.updates[0]], images_seen, batch_size):
                team.forget()

    def _clear(self, phase: Phase) -> None:
        """Nothing: a step leaves no gradients behind."""

    def _backward(self, phase: Phase, context: Any, last: bool) -> Losses:
        team = self.teams[phase.updates]
        with self.precision.autocast():
            loss, losses = team.loss(phase.loss, context)
        team.engine.backward(loss)
        if not last:
            team.engine.step()  # counts the micro-batch
        terms: Losses = losses
        return terms

    def _gradients(self, phase: Phase) -> dict[str, Tensor]:
        """Return whole gradients; nothing where they are dealt out, see :meth:`_update`."""
        team = self.teams[phase.updates]
        return {} if team.partitioned else team.gradients()

    def _update(self, phase: Phase) -> None:
        engine = self.teams[phase.updates].engine
        engine.step()
        norm = engine.get_global_grad_norm()  # infinite where DeepSpeed left the update out
        if norm is not None:
            value = torch.as_tensor(norm, device=self.world.device)
            self.watch.note(self.step_number, phase.name, {}, {"+".join(phase.updates): value})

    def _after_phases(self) -> None:
        """Nothing: no update is left out."""

    def read_moments(self) -> dict[str, Tensor]:
        """Return the optimizers' state by ``part/parameter/moment``, gathered from the ranks."""
        return {
            f"{part}/{name}": value
            for team in self.teams.values()
            for part in team.updates
            for name, value in team.read(self.system.trainable[part]).items()
        }

    def write_moments(self, moments: Moments) -> None:
        """Take over the optimizers' state of a checkpoint, and the weights as they are now."""
        for team in self.teams.values():
            team.refresh()
            for part in team.updates:
                prefix = f"{part}/"
                own = {
                    k.removeprefix(prefix): v for k, v in moments.items() if k.startswith(prefix)
                }
                if own:
                    team.write(self.system.trainable[part], own)


def take_channels_last(network: nn.Module) -> None:
    """Let convolutions take images as (B, H, W, C) in memory, whatever their weights lie in.

    ZeRO's weights and gradients are slices of one buffer, so they are contiguous.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_pre_hook(_to_channels_last)


def _to_channels_last(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(value.contiguous(memory_format=torch.channels_last) for value in inputs)
