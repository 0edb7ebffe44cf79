"""What tests ask of networks."""

from __future__ import annotations

from torch import nn


def parameter_count(module: nn.Module, trainable: bool = False) -> int:
    """Return the number of parameters, or of those that are trained."""
    chosen = [p for p in module.parameters() if p.requires_grad or not trainable]
    return sum(p.numel() for p in chosen)
