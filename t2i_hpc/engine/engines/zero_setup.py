"""What DeepSpeed is told and needs, and what engine=deepspeed refuses.

Everything that it would guess is written out: it clips gradients unless it is told not to, and
asks the environment for ranks that the world knows already.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import warnings
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist

from t2i_hpc.common.errors import ConfigurationError
from t2i_hpc.common.step import System
from t2i_hpc.config.engine import EngineConfig
from t2i_hpc.engine.engines.compilation import compiling
from t2i_hpc.engine.world import World

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


def check_configuration(system: System, config: EngineConfig) -> None:
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
            "engine.on_nonfinite=skip must see whole gradients, which engine=deepspeed deals out: "
            "take engine=ddp"
        )
    seen: dict[str, tuple[str, ...]] = {}
    for phase in system.phases:
        for part in phase.updates:
            if seen.setdefault(part, phase.updates) != phase.updates:
                raise ConfigurationError(
                    f"engine=deepspeed updates {part} either alone or with others, and this system "
                    "does both: take engine=ddp"
                )
        _check_together(system, config, phase.updates)


def _check_together(system: System, config: EngineConfig, updates: tuple[str, ...]) -> None:
    """Refuse what one optimiser of several parts does otherwise than one of each."""
    if len(updates) == 1:
        return
    settings = [system.optimisers[name] for name in updates]
    together = f"{' and '.join(updates)} are updated together"
    if config.clip is not None or any(one.clip is not None for one in settings):
        raise ConfigurationError(
            f"{together}, and engine=deepspeed would clip the gradient of all of them instead of "
            "each part's: leave clip empty, or take engine=ddp"
        )
    if len({one.restart_every for one in settings}) > 1:
        raise ConfigurationError(
            f"{together} with different restart_every, which engine=deepspeed does not offer: "
            "take engine=ddp"
        )


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
