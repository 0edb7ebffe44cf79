"""Parts that are updated together, in a DeepSpeed engine of their own.

With ZeRO an optimiser's moments lie in pieces on the ranks. They leave whole and enter whole, by
parameter name.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from t2i_hpc.common.step import System
from t2i_hpc.config.engine import EngineConfig
from t2i_hpc.engine.engines.engine import PhaseLoss
from t2i_hpc.engine.engines.optimisers import (
    MOMENTS,
    build_optimiser,
    forget_moments,
    read_moments,
    read_step,
    trainable,
    write_moments,
    write_step,
)
from t2i_hpc.engine.engines.zero_setup import settings
from t2i_hpc.engine.world import World


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
        self.loss = PhaseLoss([system.parts[name] for name in updates], anchored=True)
        self.trained = {
            f"{part}.{name}": p for part in updates for name, p in trainable(system.parts[part])
        }
        self.partitioned = config.zero_stage > 0
        groups = [
            build_optimiser(
                system.parts[name], system.optimisers[name], config.optimiser, world.device
            )
            for name in updates
        ]
        optimiser = groups[0]
        for other in groups[1:]:
            optimiser.add_param_group(other.param_groups[0])
        clip = system.optimisers[updates[0]].clip
        self.engine = deepspeed.initialize(
            args=_device_of(world),
            model=self.loss,
            optimizer=optimiser,
            config=settings(config, world, config.clip if clip is None else clip),
            dist_init_required=False,
        )[0]
        self.optimiser: torch.optim.Optimizer = (
            self.engine.optimizer.optimizer if self.partitioned else optimiser
        )

    def gradients(self) -> dict[str, Tensor]:
        """Return the gradients by ``part.parameter``; stage 0 keeps them whole."""
        return {name: p.grad for name, p in self.trained.items() if p.grad is not None}

    def forget(self) -> None:
        """Let the moments begin anew."""
        forget_moments(self.optimiser)

    def refresh(self) -> None:
        """Take over weights that were loaded into the networks."""
        if self.partitioned:
            self.engine.optimizer.refresh_fp32_params()

    def read(self, part: nn.Module) -> dict[str, Tensor]:
        """Return a part's moments, whole on every rank."""
        if not self.partitioned:
            return read_moments(part, self.optimiser)
        if not any(MOMENTS[0] in state for state in self.optimiser.state.values()):
            return {}
        self._find_moments()
        count = read_step(self.optimiser, next(iter(self.optimiser.state.values())))
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
            write_moments(part, self.optimiser, moments)
            return
        self._begin_moments()
        for name, parameter in trainable(part):
            for key in MOMENTS:
                value = moments[f"{name}/{key}"].to(parameter.device)
                _fragmented(parameter).set_full_hp_param(value, key)
            for state in self.optimiser.state.values():
                write_step(self.optimiser, state, moments[f"{name}/step"])

    def _begin_moments(self) -> None:
        """Make the moments that DeepSpeed makes at its first step."""
        for flat in self.engine.optimizer.single_partition_of_fp32_groups:
            state = self.optimiser.state[flat]
            if not state:
                state |= {key: torch.zeros_like(flat) for key in MOMENTS}
                write_step(self.optimiser, state, torch.zeros(()))
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
