"""What ranks exchange, with gradients: sums and gathers over the whole group.

Outside a process group (one rank) every function is the identity, so losses and networks are
written once. All ranks must call them in the same order.

They have a process group of their own where the world made one (:func:`use_group`): on the default
group they would queue behind DDP's buckets, which are far larger and which nothing waits for
before the backward ends.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def world_size() -> int:
    """Return the number of ranks (1 outside a process group)."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Return this process's rank (0 outside a process group)."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


class _Own:
    """The group of these exchanges; None: the default group."""

    group: dist.ProcessGroup | None = None


def use_group(group: dist.ProcessGroup | None) -> None:
    """Exchange over `group` of all ranks from now on; None: over the default group."""
    _Own.group = group


def all_reduce(value: Tensor) -> None:
    """Replace `value` by its sum over all ranks, in place and without gradient."""
    dist.all_reduce(value, group=_Own.group)


class _SumOverRanks(torch.autograd.Function):
    """y = Σ_r x_r on every rank; the gradient of each x_r is Σ_r of the ranks' gradients."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        total = value.detach().clone(memory_format=torch.contiguous_format)
        all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        total = gradient.clone(memory_format=torch.contiguous_format)
        all_reduce(total)
        return total


class _GatherRows(torch.autograd.Function):
    """Concatenate every rank's rows; the gradient of own rows is summed over the ranks."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        rows = value.detach().contiguous()
        slices = [torch.empty_like(rows) for _ in range(world_size())]
        dist.all_gather(slices, rows, group=_Own.group)
        return torch.cat(slices)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        total = gradient.clone(memory_format=torch.contiguous_format)
        all_reduce(total)
        return total.chunk(world_size())[rank()]


def sum_over_ranks(value: Tensor) -> Tensor:
    """Return the element-wise sum of `value` over all ranks, differentiably."""
    if world_size() == 1:
        return value
    result: Tensor = _SumOverRanks.apply(value)
    return result


def gather_rows(value: Tensor) -> Tensor:
    """Return (world·n, …): the rows of all ranks in rank order, differentiably.

    `value` is (n, …) with the same shape on every rank. A loss that every rank computes
    equally from gathered rows gets world times its gradient on each rank, which averaging
    over the ranks turns into the exact gradient of the single-process loss.
    """
    if world_size() == 1:
        return value
    result: Tensor = _GatherRows.apply(value)
    return result


def mean_over_ranks(values: Tensor) -> Tensor:
    """Return the mean over ranks of a small tensor of numbers to log, without gradient."""
    if world_size() == 1:
        return values
    total = values.detach().clone()
    all_reduce(total)
    return total / world_size()
