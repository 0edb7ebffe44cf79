"""What the ``engine`` settings cannot do: refused before any network is built.

A system's outline is enough (:func:`t2i_hpc.systems.outline_system`), so a job that could not
start is refused where it is submitted, and a training before it has waited for anything.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch.torch_version import TorchVersion

from t2i_hpc.common.errors import ConfigurationError
from t2i_hpc.config.engine import EngineConfig
from t2i_hpc.models.recomputation import recomputable_blocks
from t2i_hpc.systems.base import RetrievalSystem, System
from t2i_hpc.training.deepspeed_build import require_compilation
from t2i_hpc.training.optimizers import check_build

_ALL = "all"
_DRAWS = "generator"  # the network that draws before the phases; a phase has this name too
_OLDEST = "2.11"  # torch, for phases: the oldest version that they were tried with


def check_engine(
    system: System, config: EngineConfig, ranks: int, device: torch.device | None
) -> None:
    """Refuse settings that cannot be kept.

    Args:
        system: what is to be trained, or its outline.
        config: of the engine.
        ranks: of the training.
        device: of a rank; None: another machine's, which cannot be checked.

    Raises:
        ConfigurationError: names the setting, and what to take instead.
    """
    _check_micro_batches(config, ranks)
    _check_profile(config.profile)
    if config.patience is not None and not isinstance(system, RetrievalSystem):
        raise ConfigurationError(
            "engine.patience ends a pre-training by its retrieval score, which a GAN has none of: "
            "leave it out, and take engine.images or engine.minutes"
        )
    networks, _ = choose_compiled(system, config.compile)
    _check_recomputed(system, config, networks)
    if config.name == "deepspeed":
        check_deepspeed(system, config)
        require_compilation("engine=deepspeed", "take engine=ddp", here=device is not None)
    elif config.precision == "fp16" and config.on_nonfinite == "skip":
        raise ConfigurationError(
            "engine.precision=fp16 skips updates that overflow by itself: take "
            "engine.on_nonfinite=stop with it"
        )
    _check_compression(config, device)
    check_build(config.optimizer, device)
    whole = config.name == "ddp" or config.zero_stage == 0
    on_cpu = device is not None and device.type == "cpu"
    if on_cpu and whole and config.optimizer == "deepspeed" and config.channels_last:
        raise ConfigurationError(
            "engine.optimizer=deepspeed on a CPU updates a copy of channels-last weights, "
            "so they would never move: take engine.optimizer=adam, or engine.channels_last=false"
        )


def _check_compression(config: EngineConfig, device: torch.device | None) -> None:
    if config.gradient_compression == "none":
        return
    asked = f"engine.gradient_compression={config.gradient_compression}"
    if config.name == "deepspeed":
        raise ConfigurationError(
            f"{asked} is what engine=ddp does; engine=deepspeed averages gradients as they are: "
            "take one or the other"
        )
    if device is not None and not dist.is_nccl_available():
        raise ConfigurationError(
            f"{asked} needs a torch that was built with NCCL, and this one was not: leave it out"
        )


def _check_micro_batches(config: EngineConfig, ranks: int) -> None:
    count = config.accumulate
    if count > 1 and config.batch_size % (count * ranks):
        raise ConfigurationError(
            f"engine.accumulate={count} does not divide the {config.batch_size // ranks} images "
            f"that each of {ranks} ranks has of engine.batch_size={config.batch_size}: take a "
            "divisor of them"
        )
    if config.batch_size // count < 2:
        raise ConfigurationError(
            f"engine.batch_size={config.batch_size} over engine.accumulate={count} is 1 image, "
            "which has no batch statistics and no wrong caption: take a smaller accumulate"
        )


def _check_profile(steps: Sequence[int]) -> None:
    if len(steps) > 2 or list(steps) != sorted(steps):
        raise ConfigurationError(
            f"engine.profile={list(steps)} is neither a count of steps, as [4], nor a first and a "
            "last step, as [10,13]"
        )


def choose_compiled(system: System, names: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the networks and the phases that ``engine.compile`` names.

    Raises:
        ConfigurationError: there is none of a name, or torch is too old for phases.
    """
    phases = [phase.name for phase in system.phases]
    if _ALL in names:
        names = [*(n for n in [_DRAWS] if n in system.modules), *phases]
    for name in names:
        if name not in phases and name not in system.modules:
            raise ConfigurationError(
                f"engine.compile names {name!r}; this system has the phases {', '.join(phases)}, "
                f"the networks {', '.join(system.modules)}, and {_ALL}"
            )
    networks = [n for n in names if n in system.modules and (n == _DRAWS or n not in phases)]
    chosen = [name for name in phases if name in names]
    if chosen and TorchVersion(torch.__version__) < _OLDEST:
        raise ConfigurationError(
            f"engine.compile names the phase {chosen[0]}, which needs torch 2.11 or newer, and "
            f"this is {torch.__version__}: take engine.compile=[], or update torch"
        )
    return networks, chosen


def _check_recomputed(system: System, config: EngineConfig, compiled: Sequence[str]) -> None:
    """Refuse networks that have no blocks to run again, or that are compiled."""
    can = [name for name, network in system.modules.items() if recomputable_blocks(network)]
    can = [name for name in can if name != "generator_ema"]  # it has no backward pass
    for name in config.recompute:
        if name not in can:
            raise ConfigurationError(
                f"engine.recompute names {name!r}, which has no blocks that may run again; this "
                f"system has {', '.join(can) or 'no network that does'}"
            )
        if name in compiled:
            raise ConfigurationError(
                f"engine.recompute and engine.compile both name {name!r}: torch decides itself "
                "what a compiled network computes again; name it in one of them, as with "
                "engine.compile=[]"
            )


def check_deepspeed(system: System, config: EngineConfig) -> None:
    """Refuse what ZeRO cannot do exactly.

    Raises:
        ConfigurationError: names the setting, and what to take instead.
    """
    if config.precision == "fp16":
        raise ConfigurationError(
            "engine=deepspeed scales no losses here: take engine.precision=bf16, or engine=ddp"
        )
    if config.on_nonfinite == "skip":
        raise ConfigurationError(
            "engine.on_nonfinite=skip must see whole gradients, which engine=deepspeed partitions: "
            "take engine=ddp"
        )
    seen: dict[str, tuple[str, ...]] = {}
    for phase in system.phases:
        for name in phase.updates:
            if seen.setdefault(name, phase.updates) != phase.updates:
                raise ConfigurationError(
                    f"engine=deepspeed updates {name} either alone or with others, and this system "
                    "does both: take engine=ddp"
                )
        _check_together(system, config, phase.updates)


def _check_together(system: System, config: EngineConfig, updates: tuple[str, ...]) -> None:
    """Refuse what one optimizer of several modules does otherwise than one of each."""
    if len(updates) == 1:
        return
    settings = [system.optimizers[name] for name in updates]
    together = f"{' and '.join(updates)} are updated together"
    if config.clip is not None or any(one.clip is not None for one in settings):
        raise ConfigurationError(
            f"{together}, and engine=deepspeed would clip the gradient of all of them instead of "
            "each module's: leave clip empty, or take engine=ddp"
        )
    if len({one.restart_every for one in settings}) > 1:
        raise ConfigurationError(
            f"{together} with different restart_every, which engine=deepspeed does not offer: "
            "take engine=ddp"
        )
