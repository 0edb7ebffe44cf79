"""The arithmetic that images are generated in: float32 as it is written, or a named autocast.

cuDNN may convolve in TF32 (10 bits of mantissa) and choose kernels by timing, and matrix products
may be set to TF32 for a whole process. Each would make an image depend on the machine's settings.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from t2i_hpc.common.errors import ConfigurationError, nearest

PRECISIONS = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}


def check_precision(name: str) -> None:
    """Refuse a precision that is not offered.

    Raises:
        ConfigurationError: names those that are.
    """
    if name not in PRECISIONS:
        raise ConfigurationError(f"precision={name} is not offered: {nearest(name, PRECISIONS)}")


@contextlib.contextmanager
def exact_kernels() -> Iterator[None]:
    """Run the block without TF32 and with deterministic cuDNN kernels; restore the settings."""
    kernels = torch.backends.cudnn.flags(
        enabled=True, benchmark=False, deterministic=True, allow_tf32=False
    )
    with kernels, _exact_products():
        yield


@contextlib.contextmanager
def generating(precision: str, device: torch.device) -> Iterator[None]:
    """Run a generator without gradients, by exact kernels, in a precision of `PRECISIONS`."""
    dtype = PRECISIONS[precision]
    lower = torch.autocast(device.type, dtype) if dtype else contextlib.nullcontext()
    with torch.no_grad(), exact_kernels(), lower:
        yield


@contextlib.contextmanager
def _exact_products() -> Iterator[None]:
    """Run the block with float32 matrix products; cuDNN's flags are of convolutions alone.

    NVIDIA's containers set TORCH_ALLOW_TF32_CUBLAS_OVERRIDE, which makes TF32 the state that a
    process begins with; what is set here goes before it.
    """
    products = torch.backends.cuda.matmul
    before = products.allow_tf32
    products.allow_tf32 = False
    try:
        yield
    finally:
        products.allow_tf32 = before
