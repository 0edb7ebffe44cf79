"""Dropout that any number of ranks does alike: what is dropped spans the global batch.

All ranks draw for the whole batch from generators that stand alike (see
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

from t2i_hpc.common.collectives import rank, world_size


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
