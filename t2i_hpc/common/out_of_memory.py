"""Running out of memory, on a GPU or off it, as one sentence with an exit code of its own."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from t2i_hpc.common.errors import UserError
from t2i_hpc.common.exit_codes import OUT_OF_MEMORY

if TYPE_CHECKING:
    import torch

# By what they save: half a rank's images take half the memory for gradients. Of a small SSA-GAN
# accumulate=4 saved a fifth of that, bf16 a tenth (the generator draws the whole batch first, and
# penalties are computed in float32).
TRAINING_LEVERS = (
    "use more ranks or lower engine.batch_size, which saves most, or raise engine.accumulate, take "
    "engine.precision=bf16 or give system.damsm.chunk"
)
_ANY_LEVERS = "use smaller batches or fewer processes, or ask for more memory"
# What torch, cuBLAS and cuDNN say where they raise no error of a kind of its own.
_SIGNS = (
    "DefaultCPUAllocator: can't allocate memory",
    "DefaultCPUAllocator: not enough memory",
    "CUDA out of memory",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)


class OutOfMemoryError(UserError):
    """A process has no memory left for what it was to do."""

    exit_code = OUT_OF_MEMORY


@contextlib.contextmanager
def memory_explained(
    where: Callable[[], str] = str,
    device: torch.device | None = None,
    levers: str = _ANY_LEVERS,
) -> Iterator[None]:
    """Turn an error for want of memory into a sentence.

    Args:
        where: says which rank this is and what it is doing; empty where nobody knows.
        device: whose memory is told; None: the main memory.
        levers: what to do, as the end of the sentence.

    Raises:
        OutOfMemoryError: instead of what torch, numpy or Python raised.
    """
    try:
        yield
    except Exception as error:
        if not ran_out_of_memory(error):
            raise
        begin = f"{where()} ran out of memory".strip()
        raise OutOfMemoryError(f"{begin}: {_state(device, error)}; {levers}") from error


def ran_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory is used up; imports no torch."""
    if isinstance(error, UserError):
        return False
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in _SIGNS)


def _state(device: torch.device | None, error: BaseException) -> str:
    """Say how much memory there is and who has it."""
    if device is not None and device.type == "cuda":
        with contextlib.suppress(RuntimeError):  # a device in trouble may answer nothing more
            return _state_of_gpu(device)
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
    if device is not None and device.type == "cuda":
        return reason
    import resource

    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return (
        f"this process took up to {own / 2**30:.1f} GiB of main memory, the machine has "
        f"{whole / 2**30:.1f} GiB ({reason})"
    )


def _state_of_gpu(device: torch.device) -> str:
    import torch

    free, total = torch.cuda.mem_get_info(device)
    allocated = torch.cuda.memory_allocated(device)
    reserved = torch.cuda.memory_reserved(device)
    others = max(0, total - free - reserved)
    return (
        f"{allocated / 2**30:.1f} GiB of the {total / 2**30:.1f} GiB of GPU {device.index} "
        f"({torch.cuda.get_device_name(device)}) are allocated, {reserved / 2**30:.1f} reserved by "
        f"this process, {others / 2**30:.1f} taken by others and by CUDA itself"
    )
