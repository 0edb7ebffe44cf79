"""Runs a system's phases with DeepSpeed's ZeRO, equal to DDP number for number.

Each set of parts that is updated together gets a DeepSpeed engine. Networks are entered bare,
as systems do, and only backward and step go through the engine: entering its wrapper would
break a gradient that is differentiated again. Adam is torch's own, over float32 weights; half
precision is autocast's business, as with DDP.

Moments leave and enter by parameter name, so a run goes on with DDP, another stage or another
number of ranks.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from t2i_hpc.common.step import Losses, Phase, System
from t2i_hpc.config.engine import EngineConfig
from t2i_hpc.engine.engines.engine import Engine, Moments, lay_out
from t2i_hpc.engine.engines.schedule import learning_rate, restarts
from t2i_hpc.engine.engines.zero_setup import prepared_deepspeed
from t2i_hpc.engine.engines.zero_team import Team
from t2i_hpc.engine.world import World


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
            for name, group in zip(team.updates, team.optimiser.param_groups, strict=True):
                settings = self.system.optimisers[name]
                group["lr"] = learning_rate(settings, self.config.schedule, images_seen)
            if restarts(self.system.optimisers[team.updates[0]], images_seen, batch_size):
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
        """Return the optimisers' state by ``part/parameter/moment``, gathered from the ranks."""
        return {
            f"{part}/{name}": value
            for team in self.teams.values()
            for part in team.updates
            for name, value in team.read(self.system.parts[part]).items()
        }

    def write_moments(self, moments: Moments) -> None:
        """Take over the optimisers' state of a checkpoint, and the weights as they are now."""
        for team in self.teams.values():
            team.refresh()
            for part in team.updates:
                prefix = f"{part}/"
                own = {
                    k.removeprefix(prefix): v for k, v in moments.items() if k.startswith(prefix)
                }
                if own:
                    team.write(self.system.parts[part], own)


def take_channels_last(network: nn.Module) -> None:
    """Let convolutions take images as (B, H, W, C) in memory, whatever their weights lie in.

    ZeRO's weights and gradients are slices of one buffer, so they are contiguous.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_pre_hook(_to_channels_last)


def _to_channels_last(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(value.contiguous(memory_format=torch.channels_last) for value in inputs)
