"""Batch norm over all ranks by the CUDA kernels that torch's SyncBatchNorm is made of.

A map is passed over 3 times forward and 5 times backward, in the layout and precision it comes in,
with one collective each way. SyncBatchNorm itself waits for the device in every layer, where it
takes ranks without rows out of the statistics; here those count next to nothing instead.

torch knows these kernels on CUDA alone: shapes and types for tracing them are registered here.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from t2i_hpc.common.collectives import all_reduce, rank, world_size

# What a rank without rows says it has. The kernel divides by the sum of counts so far, which is 0
# where such a rank is first; with this it forgets that rank's moments.
_NEXT_TO_NOTHING = 1e-30


class NormalizeByKernels(torch.autograd.Function):
    """Batch norm of (B, C, H, W) on a GPU, B of any rank; also its mean, variance and count.

    A second derivative is an error.
    """

    @staticmethod
    def forward(
        ctx: Any, features: Tensor, weight: Tensor | None, bias: Tensor | None, epsilon: float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the normalized map, mean and biased variance (C,), and values of a channel ()."""
        features = features.contiguous(memory_format=_layout_of(features))
        mean, deviation, counts = _global_statistics(features, epsilon)
        variance = deviation.pow(-2) - epsilon
        count = counts.sum()
        ctx.save_for_backward(features, weight, mean, deviation, counts)
        ctx.mark_non_differentiable(mean, variance, count)
        if not features.numel():
            return features.clone(), mean, variance, count
        normalized = torch.batch_norm_elemt(features, weight, bias, mean, deviation, epsilon)
        return normalized, mean, variance, count

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradient of the map, and this rank's part of those of weight and bias."""
        features, weight, mean, deviation, counts = ctx.saved_tensors
        gradient = gradient.contiguous(memory_format=_layout_of(features))
        if features.numel():  # Σ g, Σ g·(x - mean), Σ g·x̂ and Σ g again, of this rank's rows
            of_gradient, of_product, by_weight, by_bias = torch.batch_norm_backward_reduce(
                *(gradient, features, mean, deviation, weight),
                *(True, weight is not None, weight is not None),
            )
        else:
            of_gradient, of_product, by_weight, by_bias = torch.zeros_like(mean).expand(4, -1)
        sums = torch.stack([of_gradient, of_product])
        all_reduce(sums)
        by_features = gradient
        if features.numel():
            by_features = torch.batch_norm_backward_elemt(
                gradient,
                features,
                mean,
                deviation,
                weight,
                sums[0],
                sums[1],
                counts.to(torch.int32),
            )
        if weight is None:
            return by_features, None, None, None
        return by_features, by_weight, by_bias, None


def _layout_of(features: Tensor) -> torch.memory_format:
    """Return one of the two layouts that the kernels have, the same for map and gradient."""
    last = features.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if last else torch.contiguous_format


def _global_statistics(features: Tensor, epsilon: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return mean and 1/√(variance + ε) (C,) over all ranks, and the count of each rank (ranks,).

    Every rank fills its row of a table, which one all-reduce completes. Counts stay on the device,
    as the numbers of rows may differ: no sync.
    """
    channels, own = features.shape[1], features.numel() // features.shape[1]
    precise = torch.promote_types(features.dtype, torch.float32)
    table = torch.zeros(world_size(), 2 * channels + 1, dtype=precise, device=features.device)
    row = table[rank()]
    if own:
        row[:channels], row[channels:-1] = torch.batch_norm_stats(features, epsilon)
        row[-1].fill_(own)  # assigned, it would be copied from the host
    else:
        row[channels:-1].fill_(1.0)
        row[-1].fill_(_NEXT_TO_NOTHING)
    all_reduce(table)
    means, deviations, counts = table.split([channels, channels, 1], dim=1)
    counts = counts.flatten()
    # The table stands in for the map: the kernel takes from it only the type of the counts. No
    # running statistics: it would move them unknown to what traces it.
    mean, deviation = torch.batch_norm_gather_stats_with_counts(
        table, means, deviations, None, None, 0.0, epsilon, counts
    )
    return mean, deviation, counts


def _statistics(input: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    kind = torch.promote_types(input.dtype, torch.float32)
    return input.new_empty(input.shape[1], dtype=kind), input.new_empty(input.shape[1], dtype=kind)


def _gathered(input: Tensor, mean: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return mean.new_empty(mean.shape[1]), mean.new_empty(mean.shape[1])


def _like_first(first: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(first)


def _reduced(
    grad_out: Tensor, input: Tensor, mean: Tensor, *given: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    *_, of_input, of_weight, of_bias = given
    asked = (of_input, of_input, of_weight, of_bias)
    first, second, third, fourth = (mean.new_empty(len(mean) if each else 0) for each in asked)
    return first, second, third, fourth


_SHAPES = {
    "batch_norm_stats": _statistics,
    "batch_norm_gather_stats_with_counts": _gathered,
    "batch_norm_elemt": _like_first,
    "batch_norm_backward_reduce": _reduced,
    "batch_norm_backward_elemt": _like_first,
}
_library = torch.library.Library("aten", "IMPL", "Meta")
for _name, _shapes in _SHAPES.items():
    if not torch._C._dispatch_has_kernel_for_dispatch_key(f"aten::{_name}", "Meta"):
        _library.impl(_name, _shapes)
