"""Adam in the builds that clusters have: torch's, torch's fused, NVIDIA apex's.

All of them keep the same moments (``exp_avg``, ``exp_avg_sq``) and a step count, so a run goes
on with another one after a restart.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from t2i_hpc.common.errors import ConfigurationError
from t2i_hpc.common.step import OptimiserSettings

MOMENTS = ("exp_avg", "exp_avg_sq")


def trainable(part: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """Return names and parameters that an optimiser updates, in the module's order."""
    return [(name, p) for name, p in part.named_parameters() if p.requires_grad]


def build_optimiser(
    part: nn.Module, settings: OptimiserSettings, kind: str, device: torch.device
) -> torch.optim.Optimizer:
    """Build Adam over the part's trainable parameters.

    Args:
        part: its parameters must lie on `device` already.
        settings: learning rate, β₁, β₂, ε.
        kind: ``adam``, ``fused``, ``apex``, or ``auto``: fused on a GPU, else plain.

    Raises:
        ConfigurationError: apex is not NVIDIA's or not there, or wants a GPU.
    """
    parameters = [parameter for _, parameter in trainable(part)]
    words: dict[str, Any] = {
        "lr": settings.learning_rate,
        "betas": settings.betas,
        "eps": settings.epsilon,
    }
    if kind == "apex":
        if device.type != "cuda":
            raise ConfigurationError(
                "engine.optimiser=apex runs on GPUs only: take engine.optimiser=adam here"
            )
        apex_adam: torch.optim.Optimizer = find_apex_adam()(parameters, adam_w_mode=False, **words)
        return apex_adam
    fused = kind == "fused" or (kind == "auto" and device.type == "cuda")
    return torch.optim.Adam(parameters, fused=fused or None, **words)


def find_apex_adam() -> Any:
    """Return NVIDIA apex's FusedAdam.

    Raises:
        ConfigurationError: it is not installed, or what is installed is another project.
    """
    how = (
        "build NVIDIA's from github.com/NVIDIA/apex with APEX_CPP_EXT=1 APEX_CUDA_EXT=1 pip "
        "install --no-build-isolation ., or take engine.optimiser=fused, which needs nothing"
    )
    try:
        import apex
    except ImportError as error:
        raise ConfigurationError(
            f"engine.optimiser=apex, but apex is not installed: {how}"
        ) from error
    try:
        from apex.optimizers import FusedAdam
    except ImportError as error:
        where = getattr(apex, "__file__", None) or "the one installed"
        raise ConfigurationError(
            f"engine.optimiser=apex, but {where} has no optimizers.FusedAdam: the package called "
            f"apex on PyPI is another project; uninstall it and {how}"
        ) from error
    return FusedAdam


def read_moments(part: nn.Module, optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return the moments and step counts by ``parameter/moment``; empty before the first step."""
    found: dict[str, Tensor] = {}
    groups = {id(p): group for group in optimiser.param_groups for p in group["params"]}
    for name, parameter in trainable(part):
        state = optimiser.state.get(parameter, {})
        if MOMENTS[0] not in state:
            continue
        found |= {f"{name}/{key}": state[key] for key in MOMENTS}
        # apex counts the steps of a whole group
        count = state.get("step", groups[id(parameter)].get("step", 0))
        found[f"{name}/step"] = torch.as_tensor(count, dtype=torch.float32)
    return found


def write_moments(
    part: nn.Module, optimiser: torch.optim.Optimizer, moments: dict[str, Tensor]
) -> None:
    """Give an optimiser what :func:`read_moments` returned, from this or another build."""
    counts_groups = type(optimiser).__module__.startswith("apex")
    on_device = bool(optimiser.param_groups[0].get("fused"))
    for name, parameter in trainable(part):
        if f"{name}/{MOMENTS[0]}" not in moments:
            continue
        state: dict[str, Any] = {
            key: torch.empty_like(parameter).copy_(moments[f"{name}/{key}"]) for key in MOMENTS
        }
        count = moments[f"{name}/step"]
        if counts_groups:
            for group in optimiser.param_groups:
                group["step"] = int(count)
        else:
            state["step"] = count.to(parameter.device) if on_device else count.cpu()
        optimiser.state[parameter] = state
