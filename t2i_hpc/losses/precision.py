"""The precision that losses are computed in: float32 at least, whatever the networks run in."""

from __future__ import annotations

import torch
from torch import Tensor


def at_least_float32(value: Tensor) -> Tensor:
    """Return half precision as float32; float32 and float64 stay as they are."""
    return value.to(torch.promote_types(value.dtype, torch.float32))
