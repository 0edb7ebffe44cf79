"""Matching-aware gradient penalty (DF-GAN, SSA-GAN Eq. 6)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def matching_aware_gradient_penalty(
    judge: Callable[[Tensor, Tensor], Tensor], image: Tensor, sentence: Tensor, power: float = 6.0
) -> Tensor:
    """Return mean_b (‖∇x‖² + ‖∇e‖²)^(power/2) at real, matching pairs.

    The norm of the released code: of the concatenated gradients. Written without the square
    root, whose gradient is not a number where a gradient vanishes; computed in float32, since
    a sixth power overflows half precision.

    Args:
        judge: logits (B,) of images (B, 3, H, W) with sentences (B, S), without batch statistics.
        image, sentence: real pairs; their own graph is not entered.
        power: p of the norm, 6 in the papers.
    """
    with torch.autocast(image.device.type, enabled=False):
        leaves = [value.detach().to(_wide(value)).requires_grad_() for value in (image, sentence)]
        logits = judge(*leaves)
        gradients = torch.autograd.grad(logits.sum(), leaves, create_graph=True)
        squares = sum(gradient.flatten(1).square().sum(1) for gradient in gradients)
        return torch.as_tensor(squares).pow(power / 2).mean()


def _wide(value: Tensor) -> torch.dtype:
    return torch.float64 if value.dtype == torch.float64 else torch.float32
