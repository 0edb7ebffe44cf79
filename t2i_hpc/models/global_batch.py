"""Layers over the global batch: batch norm and dropout that any number of ranks computes alike.

torch's SyncBatchNorm takes no CPU tensors and waits for the device in each layer, so moments are
exchanged here, on GPUs by the kernels that it is made of (``batch_norm_kernels.py``); with one rank
this is torch's own batch norm, bit-identical. State-dict keys are torch's. For dropout all ranks
draw for the whole batch from generators that stand alike (see
:func:`t2i_hpc.common.seeds.seed_step`), and each takes its own rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.overrides import TorchFunctionMode

from t2i_hpc.common.collectives import all_reduce, rank, world_size
from t2i_hpc.models.batch_norm_kernels import NormalizeByKernels


class GlobalBatchNorm2d(nn.BatchNorm2d):
    """Batch norm of (B, C, H, W) whose training statistics span all ranks.

    Ranks may hold different numbers of rows, or none: the mismatched pairs of a batch are one
    fewer than its images, so the last rank has one less.
    """

    def forward(self, features: Tensor) -> Tensor:
        """Normalize by the global batch (training) or the running statistics (evaluation)."""
        if not self.training or world_size() == 1:
            return super().forward(features)
        return self._globally(features)[0]

    def with_moments(self, features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Normalize by the global batch; also return its means and 1/σ, (C,) without gradient."""
        if world_size() > 1:
            normalized, mean, variance = self._globally(features)
            return normalized, mean, (variance + self.eps).rsqrt()
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
        momentum = 0.1 if self.momentum is None else self.momentum
        # What torch's batch_norm calls, cuDNN's kernels or torch's own; it alone gives them away.
        normalized, mean, deviation, *_ = torch._batch_norm_impl_index(
            *(features, self.weight, self.bias, self.running_mean, self.running_var),
            *(True, momentum, self.eps, torch.backends.cudnn.enabled),
        )
        return normalized, mean.detach(), deviation.detach()

    def _globally(self, features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the normalized features, and mean and biased variance (C,) over all ranks."""
        normalize = NormalizeByKernels if features.is_cuda else _NormalizeGlobally
        normalized, mean, variance, count = normalize.apply(
            features, self.weight, self.bias, self.eps
        )
        self._track(mean, variance * (count / (count - 1).clamp(min=1)))
        return normalized, mean, variance

    def _track(self, mean: Tensor, unbiased_variance: Tensor) -> None:
        """Move the running statistics, as torch does."""
        momentum = 0.1 if self.momentum is None else self.momentum
        if self.running_mean is not None and self.running_var is not None:
            self.running_mean.lerp_(mean, momentum)
            self.running_var.lerp_(unbiased_variance, momentum)
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)


class _NormalizeGlobally(torch.autograd.Function):
    """Batch norm over all ranks by kernels that every device has: one collective each way.

    It moves 12 bytes an element forward and 24 backward in float32 and keeps the input alone;
    written out in differentiable operations it would be 48, 108 and twice the input. A second
    derivative is an error.
    """

    @staticmethod
    def forward(
        ctx: Any, features: Tensor, weight: Tensor | None, bias: Tensor | None, epsilon: float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        mean, variance, count = _global_moments(features)
        ctx.save_for_backward(features, weight, mean, variance, count)
        ctx.epsilon = epsilon
        ctx.mark_non_differentiable(mean, variance, count)
        if not features.numel():
            return features.clone(), mean, variance, count
        normalized = F.batch_norm(features, mean, variance, weight, bias, False, 0.0, epsilon)
        return normalized, mean, variance, count

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        features, weight, mean, variance, count = ctx.saved_tensors
        by_weight, by_bias = torch.zeros_like(mean), torch.zeros_like(mean)
        if features.numel():  # Σ g·x̂ and Σ g, by the kernel of evaluation mode
            _, by_weight, by_bias = torch.ops.aten.native_batch_norm_backward(
                *(gradient, features, None, mean, variance, None, None),
                *(False, ctx.epsilon, [False, True, True]),
            )
        sums = torch.stack([by_weight, by_bias])
        all_reduce(sums)
        of_product, of_gradient = sums / count
        # ∂L/∂x = w/σ · (g - mean(g) - x̂ · mean(g·x̂)), a line in x plus a multiple of g.
        deviation = (variance + ctx.epsilon).rsqrt()
        scale = deviation if weight is None else deviation * weight
        slope = -scale * of_product * deviation
        offset = -scale * of_gradient - slope * mean
        if not features.numel():
            by_features = gradient.clone()
        else:
            zero, one = torch.zeros_like(mean), torch.ones_like(mean)
            by_features = F.batch_norm(features, zero, one, slope, offset, False, 0.0, 0.0)
            by_features.addcmul_(gradient, scale.to(gradient.dtype)[:, None, None])
        if weight is None:
            return by_features, None, None, None
        return by_features, by_weight, by_bias, None


def _global_moments(features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return mean and biased variance (C,) over all ranks, and how many values each is of.

    Ranks may hold different numbers of rows, or none. Their moments travel in one all-reduce of
    a table with a row for each rank, and are combined without cancellation (Chan et al. 1983).
    Counts travel with them and stay on the device: no sync.
    """
    wide = features.to(torch.promote_types(features.dtype, torch.float32))
    channels, own = features.shape[1], features.numel() // features.shape[1]
    shape = (world_size(), 2 * channels + 1)
    table = torch.zeros(shape, dtype=wide.dtype, device=wide.device)
    if own:
        variance, mean = torch.var_mean(wide, (0, 2, 3), correction=0)
        table[rank(), :channels], table[rank(), channels:-1] = mean, variance
        table[rank(), -1].fill_(own)  # assigned, it would be copied from the host
    all_reduce(table)
    means, variances, counts = table.split([channels, channels, 1], dim=1)
    count = counts.sum()
    mean = (means * counts).sum(0) / count
    variance = ((variances + (means - mean).square()) * counts).sum(0) / count
    return mean, variance, count


class GlobalBatchNorm1d(GlobalBatchNorm2d):
    """Batch norm of (B, C) whose training statistics span all ranks."""

    def forward(self, features: Tensor) -> Tensor:
        """Normalize by the global batch (training) or the running statistics (evaluation)."""
        return super().forward(features[:, :, None, None]).flatten(1)


def make_global(module: nn.Module) -> None:
    """Replace every torch batch norm inside `module` by the global one, weights and all."""
    for parent in list(module.modules()):
        for name, child in parent.named_children():
            if type(child) is nn.BatchNorm2d:
                setattr(parent, name, _as_global(child))


def _as_global(norm: nn.BatchNorm2d) -> GlobalBatchNorm2d:
    replacement = GlobalBatchNorm2d(
        norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats
    )
    replacement.load_state_dict(norm.state_dict())
    for name, parameter in replacement.named_parameters():
        parameter.requires_grad_(norm.get_parameter(name).requires_grad)
    return replacement


def drop(values: Tensor, probability: float) -> Tensor:
    """Set elements to zero, each with `probability`, and enlarge the others by 1/(1 - p).

    Args:
        values: (B, …), this rank's rows of the global batch; B is the same on all ranks.
        probability: 0 ≤ p < 1.
    """
    rows = len(values)
    drawn = torch.rand(world_size() * rows, *values.shape[1:], device=values.device)
    kept = drawn[rank() * rows : (rank() + 1) * rows] >= probability
    return values * kept.to(values.dtype) / (1 - probability)


class Dropout(nn.Module):
    """Drops while it is trained, as :func:`drop` does."""

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability

    def forward(self, values: Tensor) -> Tensor:
        """Return (B, …) of the same shape."""
        return drop(values, self.probability) if self.training and self.probability else values


class ExactDropout(TorchFunctionMode):
    """Inside this context the dropout of any network, its attention's too, is :func:`drop`."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Do a call of torch's, or its exact counterpart."""
        given = kwargs or {}
        if func is F.dropout:
            return _dropout(*args, **given)
        if func is F.scaled_dot_product_attention and given.get("dropout_p"):
            return _attention(*args, **given)
        return func(*args, **given)


def _dropout(
    values: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False
) -> Tensor:
    """Stand in for torch.nn.functional.dropout; values are never changed in place."""
    return drop(values, p) if training and p else values


def _attention(  # noqa: PLR0917 (torch's own signature)
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
) -> Tensor:
    """Stand in for torch.nn.functional.scaled_dot_product_attention, by its definition.

    Args:
        query, key, value: (B, H, T, D).
        attn_mask: bool, True where a query sees a key; or what is added to the scores.
        dropout_p: of the attention.
        is_causal: a query sees no later key; no mask is given then.
        scale: of the scores; None: 1/√D.
    """
    scores = query @ key.transpose(-2, -1) * (scale or 1 / math.sqrt(query.shape[-1]))
    if is_causal:
        attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        scores = scores.masked_fill(~attn_mask, -math.inf)
    elif attn_mask is not None:
        scores = scores + attn_mask
    return drop(scores.softmax(-1), dropout_p) @ value
