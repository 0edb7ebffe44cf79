"""Adam in the builds that clusters have (torch's, fused, DeepSpeed's, apex's), and its schedule.

All builds keep the same moments (``exp_avg``, ``exp_avg_sq``) and a step count, which each puts
somewhere else; so a run resumes with another build.

Learning rates and restarts of moments are functions of the images seen, the one integer from
which a run resumes: there is no scheduler with a state of its own to save.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from t2i_hpc.common.errors import ConfigurationError
from t2i_hpc.config.engine import ScheduleConfig
from t2i_hpc.runs.checkpoint import check_fit
from t2i_hpc.systems.base import OptimizerSettings, System, trainable
from t2i_hpc.training.deepspeed_build import compiling, require_compilation
from t2i_hpc.training.vector_adam import VectorAdam

MOMENTS = ("exp_avg", "exp_avg_sq")
SCALER = "scaler"
BUCKETS = "buckets"  # the order of gradients in them, by the modules that share them


def build_optimizer(
    module: nn.Module, settings: OptimizerSettings, kind: str, device: torch.device
) -> torch.optim.Optimizer:
    """Build Adam over a module's trainable parameters.

    Args:
        module: its parameters must be on `device` already.
        settings: learning rate, β₁, β₂, ε.
        kind: ``adam``, ``fused``, ``deepspeed``, ``apex``, or ``auto``: fused; see
            :func:`check_build`.
    """
    parameters = [parameter for _, parameter in trainable(module)]
    options: dict[str, Any] = {
        "lr": settings.learning_rate,
        "betas": settings.betas,
        "eps": settings.epsilon,
    }
    if kind == "apex":
        apex_adam: torch.optim.Optimizer = find_apex_adam()(
            parameters, adam_w_mode=False, **options
        )
        return apex_adam
    if kind == "deepspeed":
        return _deepspeed_adam(parameters, options, device)
    if kind == "adam":
        return torch.optim.Adam(parameters, **options)
    if device.type == "cpu":
        return VectorAdam(parameters, **options)
    return torch.optim.Adam(parameters, fused=True, **options)


def check_build(kind: str, device: torch.device | None) -> None:
    """Refuse a build of Adam that is not installed.

    Args:
        kind: as :func:`build_optimizer` takes it.
        device: where it is to run; None: another machine's, which cannot be checked.

    Raises:
        ConfigurationError: apex is not NVIDIA's or not there, or wants a GPU; or DeepSpeed's has
            nothing to be compiled with.
    """
    if kind == "deepspeed":
        wanted = "engine.optimizer=deepspeed"
        require_compilation(wanted, "take engine.optimizer=auto", here=device is not None)
    elif kind == "apex" and device is not None:
        if device.type != "cuda":
            raise ConfigurationError(
                "engine.optimizer=apex runs on GPUs only: take engine.optimizer=adam here"
            )
        find_apex_adam()


def _deepspeed_adam(
    parameters: list[nn.Parameter], options: dict[str, Any], device: torch.device
) -> torch.optim.Optimizer:
    if device.type == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    from deepspeed.ops.adam import DeepSpeedCPUAdam, FusedAdam

    with compiling():
        if device.type == "cpu":
            on_cpu: torch.optim.Optimizer = DeepSpeedCPUAdam(
                parameters, adamw_mode=False, **options
            )
            return on_cpu
        on_gpu: torch.optim.Optimizer = FusedAdam(parameters, adam_w_mode=False, **options)
        return on_gpu


def find_apex_adam() -> Any:
    """Return NVIDIA apex's FusedAdam.

    Raises:
        ConfigurationError: it is not installed, or what is installed is another project.
    """
    how = (
        "build NVIDIA's from github.com/NVIDIA/apex with APEX_CPP_EXT=1 APEX_CUDA_EXT=1 pip "
        "install --no-build-isolation ., or take engine.optimizer=fused, which needs nothing"
    )
    try:
        import apex
    except ImportError as error:
        raise ConfigurationError(
            f"engine.optimizer=apex, but apex is not installed: {how}"
        ) from error
    try:
        from apex.optimizers import FusedAdam
    except ImportError as error:
        where = getattr(apex, "__file__", None) or "the one installed"
        raise ConfigurationError(
            f"engine.optimizer=apex, but {where} has no optimizers.FusedAdam: the package called "
            f"apex on PyPI is another project; uninstall it and {how}"
        ) from error
    return FusedAdam


def read_moments(module: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return the moments and step counts by ``parameter/moment``; empty before the first step."""
    found: dict[str, Tensor] = {}
    for name, parameter in trainable(module):
        state = optimizer.state.get(parameter, {})
        if MOMENTS[0] not in state:
            continue
        found |= {f"{name}/{key}": state[key] for key in MOMENTS}
        found[f"{name}/step"] = read_step(optimizer, state)
    return found


def write_moments(
    module: nn.Module, optimizer: torch.optim.Optimizer, moments: dict[str, Tensor]
) -> None:
    """Give an optimizer what :func:`read_moments` returned, from this or another build."""
    for name, parameter in trainable(module):
        if f"{name}/{MOMENTS[0]}" not in moments:
            continue
        state: dict[str, Any] = {
            key: torch.empty_like(parameter).copy_(moments[f"{name}/{key}"]) for key in MOMENTS
        }
        write_step(optimizer, state, moments[f"{name}/step"])
        optimizer.state[parameter] = state


def moments_of(name: str, moments: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the moments of one module, by ``parameter/moment``, out of those of all."""
    prefix = f"{name}/"
    return {k.removeprefix(prefix): v for k, v in moments.items() if k.startswith(prefix)}


def check_moments(path: Path, found: Mapping[str, Tensor], system: System) -> None:
    """Compare the optimizers' state; a module has all of its own, or none before its
    first step.

    Raises:
        RunError: names the file and the first tensor that does not fit.
    """
    wanted: dict[str, Tensor] = {}
    for name in system.trainable:
        if any(key.startswith(f"{name}/") for key in found):
            wanted |= _moments_of(name, system)
    for key in found:
        if key.startswith(f"{SCALER}/"):
            wanted[key] = torch.empty(2)
        elif key.startswith(f"{BUCKETS}/"):
            names = key.removeprefix(f"{BUCKETS}/").split("+")
            count = sum(len(trainable(system.trainable[n])) for n in names if n in system.trainable)
            wanted[key] = torch.empty(count, dtype=torch.int64)
    check_fit(path, found, wanted)


def _moments_of(name: str, system: System) -> dict[str, Tensor]:
    wanted: dict[str, Tensor] = {}
    for key, parameter in trainable(system.trainable[name]):
        wanted |= {f"{name}/{key}/{moment}": parameter for moment in MOMENTS}
        wanted[f"{name}/{key}/step"] = torch.empty(())
    return wanted


def read_step(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> Tensor:
    """Return the step count of a parameter's state: float32 ().

    DeepSpeed's FusedAdam (0.19.8) counts in the state of a group's last parameter alone, and
    steps all of them with that count.
    """
    count = state.get("step", optimizer.param_groups[0].get("step", 0))
    if _build_of(optimizer) == "deepspeed":
        count = max(int(other.get("step", 0)) for other in optimizer.state.values())
    return torch.as_tensor(count, dtype=torch.float32).cpu()


def write_step(optimizer: torch.optim.Optimizer, state: dict[str, Any], count: Tensor) -> None:
    """Put a step count where an optimizer looks for it.

    apex counts for a whole group, DeepSpeed in a plain number, torch in a tensor on the CPU, or
    on the device where it is fused.
    """
    build = _build_of(optimizer)
    if build == "apex":
        for group in optimizer.param_groups:
            group["step"] = int(count)
    elif build == "deepspeed":
        state["step"] = int(count)
    else:
        fused = bool(optimizer.param_groups[0].get("fused"))
        place = state[MOMENTS[0]].device if fused else torch.device("cpu")
        state["step"] = count.detach().clone().to(place)


def _build_of(optimizer: torch.optim.Optimizer) -> str:
    """Return the package that an optimizer comes from."""
    return type(optimizer).__module__.partition(".")[0]


def reset_moments(optimizer: torch.optim.Optimizer) -> None:
    """Set an optimizer's moments and step counts to zero, whatever its build."""
    for state in optimizer.state.values():
        for key in MOMENTS:
            if key in state:
                state[key].zero_()
        write_step(optimizer, state, torch.zeros(()))


def learning_rate(settings: OptimizerSettings, schedule: ScheduleConfig, images_seen: int) -> float:
    """Return a module's learning rate of the step after `images_seen` images."""
    rate = settings.learning_rate
    if settings.learning_rate_at is not None:
        rate = settings.learning_rate_at(images_seen)
    return rate * schedule_factor(schedule, images_seen)


def schedule_factor(schedule: ScheduleConfig, images_seen: int) -> float:
    """Return what every learning rate is multiplied with after `images_seen` images.

    It grows linearly from 0 over the warm-up, counted from the first image on, and falls over
    ``decay_images`` images after it down to ``floor``, where it stays.
    """
    if images_seen < schedule.warmup_images:
        return (images_seen + 1) / (schedule.warmup_images + 1)
    if schedule.decay == "none":
        return 1.0
    done = min(1.0, (images_seen - schedule.warmup_images) / schedule.decay_images)
    fallen = done if schedule.decay == "linear" else (1 - math.cos(math.pi * done)) / 2
    return 1.0 - (1.0 - schedule.floor) * fallen


def restarts(settings: OptimizerSettings, images_seen: int, batch_size: int) -> bool:
    """Whether a module's moments restart before the step after `images_seen` images."""
    period = settings.restart_every or 0
    return bool(period) and images_seen // period > (images_seen - batch_size) // period
