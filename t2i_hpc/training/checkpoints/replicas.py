"""Whether all ranks hold bit-identical networks.

Every rank computes the same updates, so its weights are those of the others as long as nothing
goes wrong; a bad memory cell, a kernel that adds in another order or a forgotten reduction
parts them silently. So before a checkpoint 64 bits of each tensor are compared.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

from t2i_hpc.common.errors import RunError
from t2i_hpc.training.world import World

_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_AT_ONCE = 1 << 22  # numbers: bounds the memory on the device to some 64 MB
_MIX = 0x9E3779B97F4A7C15 - (1 << 64)  # 2⁶⁴ / golden ratio: odd, and spreads its multiples


def fingerprints(tensors: Sequence[Tensor]) -> Tensor:
    """Return 64 bits of each tensor, int64 (T,) on the CPU.

    They are Σ wᵢ xᵢ modulo 2⁶⁴ over the tensor's numbers read as integers, with an odd weight
    for each place. One number that changes in any bit always changes the sum, for odd weights
    have an inverse; several changes cancel with a chance of about 2⁻⁶⁰.
    """
    longest = max((value.numel() for value in tensors), default=0)
    found: dict[torch.device, Tensor] = {}
    for value in tensors:
        if value.device not in found:
            found[value.device] = _weights(min(longest, _AT_ONCE), value.device)
    sums = [_weighted_sum(value, found[value.device]) for value in tensors]
    return torch.stack(sums).cpu() if sums else torch.zeros(0, dtype=torch.int64)


def compare_replicas(modules: nn.Module, world: World) -> None:
    """Compare all ranks' parameters and buffers; a collective call.

    Raises:
        RunError: on all ranks; names the first tensor that is not the same, and the ranks.
    """
    if world.control is None:
        return
    tensors: Mapping[str, Tensor] = modules.state_dict()
    own = fingerprints(list(tensors.values()))
    every = [torch.empty_like(own) for _ in range(world.size)]
    dist.all_gather(every, own, group=world.control)
    table = torch.stack(every)
    different = (table != table[0]).any(0).nonzero().flatten().tolist()
    if different:
        name = list(tensors)[different[0]]
        raise RunError(
            f"the replicas have parted: {name} {_odd_ones(table[:, different[0]].tolist())}, as "
            f"{len(different)} of {len(tensors)} tensors; nothing was saved: the same command "
            "resumes from the last checkpoint, and if it comes again, suspect that rank's node"
        )


def _weights(count: int, device: torch.device) -> Tensor:
    return torch.arange(1, count + 1, dtype=torch.int64, device=device).mul_(_MIX).bitwise_or_(1)


def _weighted_sum(value: Tensor, weights: Tensor) -> Tensor:
    numbers = value.detach().contiguous().reshape(-1).view(_INTEGERS[value.element_size()])
    total = torch.zeros((), dtype=torch.int64, device=value.device)
    for chunk in numbers.split(_AT_ONCE):
        total = total * _MIX + (chunk * weights[: len(chunk)]).sum()
    return total


def _odd_ones(values: Sequence[int]) -> str:
    """Say which ranks have another value than most; rank 0 decides where none are most."""
    usual = max(values, key=values.count)
    odd = [str(rank) for rank, value in enumerate(values) if value != usual]
    named = f"rank{'s' * (len(odd) > 1)} {', '.join(odd)}"
    others = "rank 0" if len(values) == 2 else "the others"
    return f"of {named} is not that of {others}"
