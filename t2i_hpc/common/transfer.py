"""From the host to a device without waiting for it.

A copy out of pageable memory waits until the device has done everything that was asked of it
before. Out of pinned memory it is one more entry of the device's queue. torch's allocator keeps
pinned blocks and reuses one only after the copies out of it are over.
"""

from __future__ import annotations

import torch
from torch import Tensor


def to_device(value: Tensor, device: torch.device) -> Tensor:
    """Return a tensor on `device`; the host does not wait, and may change the original only later.

    Args:
        value: on the CPU, pinned or not, or on `device` already, when it is returned as it is.
        device: of the networks that are to read it.
    """
    if device.type != "cuda" or value.device.type != "cpu":
        return value.to(device, non_blocking=True)
    return value.pin_memory().to(device, non_blocking=True)  # pinned already: as it is
