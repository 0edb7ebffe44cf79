"""Layers over the global batch: batch norm and dropout that any number of ranks computes alike.

torch's SyncBatchNorm takes no CPU tensors, so the two sums of a batch norm are exchanged here,
differentiably; with one rank this is torch's own batch norm, bit-identical. State-dict keys are
torch's. For dropout all ranks draw for the whole batch from generators that stand alike (see
:func:`t2i_hpc.common.seeds.seed_step`), and each takes its own rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from t2i_hpc.common.collectives import rank, sum_over_ranks, world_size


class GlobalBatchNorm2d(nn.BatchNorm2d):
    """Batch norm of (B, C, H, W) whose training statistics span all ranks.

    Every rank must hold the same number of images.
    """

    def forward(self, features: Tensor) -> Tensor:
        """Normalize by the global batch (training) or the running statistics (evaluation)."""
        if not self.training or world_size() == 1:
            return super().forward(features)
        wide = features.to(torch.promote_types(features.dtype, torch.float32))
        mean, count = self._mean(wide)  # all-reduce, with gradient
        centered = wide - mean[:, None, None]
        variance = sum_over_ranks(centered.square().sum((0, 2, 3))) / count  # all-reduce
        self._track(mean.detach(), variance.detach() * (count / (count - 1)))
        normalized = centered * (variance + self.eps).rsqrt()[:, None, None]
        if self.affine:
            normalized = normalized * self.weight[:, None, None] + self.bias[:, None, None]
        return normalized.to(features.dtype)

    def _mean(self, features: Tensor) -> tuple[Tensor, Tensor | int]:
        """Return the mean of each channel (C,), and of how many values of all ranks it is."""
        count = features.numel() // features.shape[1] * world_size()
        return sum_over_ranks(features.sum((0, 2, 3))) / count, count

    def _track(self, mean: Tensor, unbiased_variance: Tensor) -> None:
        """Move the running statistics, as torch does."""
        momentum = 0.1 if self.momentum is None else self.momentum
        if self.running_mean is not None and self.running_var is not None:
            self.running_mean.lerp_(mean, momentum)
            self.running_var.lerp_(unbiased_variance, momentum)
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)


class GlobalBatchNorm1d(GlobalBatchNorm2d):
    """Batch norm of (B, C) whose training statistics span all ranks."""

    def forward(self, features: Tensor) -> Tensor:
        """Normalize by the global batch (training) or the running statistics (evaluation)."""
        return super().forward(features[:, :, None, None]).flatten(1)


class RaggedBatchNorm2d(GlobalBatchNorm2d):
    """Batch norm of (B, C, H, W) over all ranks, which may hold different numbers of rows, or none.

    The mismatched pairs of a batch are one fewer than its images, so the last rank has one less.
    """

    def _mean(self, features: Tensor) -> tuple[Tensor, Tensor | int]:
        own = features.new_tensor([features.numel() // features.shape[1]])
        # The number of rows travels with the sums and stays on the device: no sync.
        sums = sum_over_ranks(torch.cat([features.sum((0, 2, 3)), own]))
        return sums[:-1] / sums[-1], sums[-1].detach().clamp(min=2)


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
