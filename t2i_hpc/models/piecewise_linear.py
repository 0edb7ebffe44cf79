"""Leaky ReLU and average pooling whose second derivative costs nothing.

The matching-aware gradient penalty differentiates the discriminator's gradient. torch's own
leaky_relu and avg_pool2d answer the second derivative with respect to the activation by a
tensor of zeros, which then travels backwards through every convolution for nothing: 10 % of
an SSA-GAN iteration. Here the backward pass depends on the incoming gradient alone, and where
none comes in none goes out (autograd would make it zeros), so the double backward touches only
the gradient's graph.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


class _LeakyReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, slope: float) -> Tensor:
        ctx.set_materialize_grads(False)
        result = F.leaky_relu(value, slope)
        # The result has the signs of the value, and the next layer keeps it anyway.
        ctx.save_for_backward(result)
        ctx.slope = slope
        return result

    @staticmethod
    def backward(ctx: Any, gradient: Tensor | None) -> tuple[Tensor | None, None]:
        if gradient is None:
            return None, None
        (result,) = ctx.saved_tensors
        backward = torch.ops.aten.leaky_relu_backward
        return backward(gradient, result.detach(), ctx.slope, False), None


class _AveragePool2(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        ctx.set_materialize_grads(False)
        return F.avg_pool2d(value, 2)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor | None) -> Tensor | None:
        if gradient is None:
            return None
        return F.interpolate(gradient * 0.25, scale_factor=2, mode="nearest")


def leaky_relu(value: Tensor, slope: float = 0.2) -> Tensor:
    """Return max(x, slope·x); any shape."""
    result: Tensor = _LeakyReLU.apply(value, slope)
    return result


def average_pool(value: Tensor) -> Tensor:
    """Halve (B, C, H, W) by 2×2 means; H and W even."""
    result: Tensor = _AveragePool2.apply(value)
    return result
