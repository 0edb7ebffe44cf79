"""What images went through to become statistics: recorded with a score, in no hash."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Mapping

import torch

import t2i_hpc


def made_with(device: torch.device) -> dict[str, str]:
    """Return the versions of torch and of this package, and the device in words."""
    is_gpu = device.type == "cuda"
    name = torch.cuda.get_device_name(device) if is_gpu else f"{platform.machine()} CPU"
    return {"device": name, "t2i_hpc": t2i_hpc.__version__, "torch": str(torch.__version__)}


def sorted_once(found: Iterable[Mapping[str, str]]) -> list[Mapping[str, str]]:
    """Return each of them once, in one order."""
    unlike = {tuple(sorted(one.items())) for one in found}
    return [dict(items) for items in sorted(unlike)]
