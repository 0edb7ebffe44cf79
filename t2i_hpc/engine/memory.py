"""How much memory a training takes."""

from __future__ import annotations

import resource

import torch


def peak_memory(device: torch.device) -> float:
    """Return this process's largest memory so far in GB (10⁹ bytes).

    On a GPU that of all tensors together, else what was resident of the whole process.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
