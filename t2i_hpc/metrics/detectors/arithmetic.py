"""One arithmetic for all detectors: float32, with the same kernels in every run.

PyTorch lets cuDNN convolve in TF32 (10 bits of mantissa) and choose kernels by timing; both
would make a score depend on the machine's mood.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def exact_inference() -> Iterator[None]:
    """Run the block without gradients, without TF32 and with deterministic cuDNN kernels."""
    kernels = torch.backends.cudnn.flags(
        enabled=True, benchmark=False, deterministic=True, allow_tf32=False
    )
    with torch.inference_mode(), kernels:
        yield
