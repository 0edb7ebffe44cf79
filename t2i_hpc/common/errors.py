"""Errors that a person can act on, and exit codes that scripts and batch systems can act on.

Every error that a user can cause is a :class:`UserError`: one sentence with what, where and what
to do. Commands print it and exit with its code, without a traceback. Anything else is a defect
of the project and keeps its traceback.
"""

from __future__ import annotations

import contextlib
import difflib
import errno
import os
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

# Exit codes. 0 is done; after 75, 76, 130 or a kill the same command resumes from the last
# checkpoint; after 2 or 77 it needs other settings first.
GAVE_UP = 1
"""A job was started again and again without progress."""

USER_ERROR = 2

STOPPED = 75
"""A run was asked to stop, and saved (EX_TEMPFAIL: try again later)."""

LOST_RANK = 76
"""Another rank died, stopped or hung; what was saved before is intact."""

OUT_OF_MEMORY = 77
"""Memory was used up, a GPU's or the machine's; a restart would use it up again."""

NOTHING_LEFT = 79
"""A job need not start: its work is done, cancelled, or left to another job."""

INTERRUPTED = 130
"""A second Ctrl-C: the process exited at once, without a save."""

_KILLED = range(129, 193)  # 128 + a signal, as shells and srun report it


def resumes(code: int) -> bool:
    """Whether the same command resumes after this end: it stopped, lost a rank or was killed."""
    return code in (STOPPED, LOST_RANK) or code in _KILLED


class UserError(Exception):
    """Something the user can put right; the message says what, where and what to do."""

    exit_code = USER_ERROR


class ConfigurationError(UserError):
    """An unknown key, a value of the wrong type or out of its range."""


class DataError(UserError):
    """A folder, captions file, shard or manifest that cannot be used as it is."""


class RunError(UserError):
    """A run directory or checkpoint that is missing, damaged or of another kind."""


class EvaluationError(UserError):
    """Shards of an evaluation that do not fit together, or too few images."""


class ClusterError(UserError):
    """A batch system that is not there, refuses a job, or cannot run it as it is."""


class OutOfMemoryError(UserError):
    """A process has no memory left for what it was to do."""

    exit_code = OUT_OF_MEMORY


def nearest(word: str, offered: Iterable[str], count: int = 3) -> str:
    """Return a clause such as ``did you mean 'a' or 'b'?`` naming the nearest of `offered`.

    Falls back to listing what is offered when nothing is similar.
    """
    candidates = sorted(set(offered))
    close = difflib.get_close_matches(word, candidates, n=count, cutoff=0.55)
    if close:
        return "did you mean " + " or ".join(repr(name) for name in close) + "?"
    return "offered: " + ", ".join(candidates)


# By what they save: half a rank's images take half the memory for gradients. Of a small SSA-GAN
# accumulate=8 keeps a quarter, recomputation a third (tests/training/test_memory.py); bf16 saved
# a tenth.
TRAINING_REMEDIES = (
    "use more ranks or lower engine.batch_size, raise engine.accumulate, give "
    "engine.recompute=[generator], take engine.precision=bf16 or give system.damsm.chunk"
)
_ANY_REMEDIES = "use smaller batches or fewer processes, or ask for more memory"
# What torch, cuBLAS and cuDNN say where they raise no error of a kind of its own.
_SIGNS = (
    "DefaultCPUAllocator: can't allocate memory",
    "DefaultCPUAllocator: not enough memory",
    "CUDA out of memory",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)


@contextlib.contextmanager
def memory_explained(
    where: Callable[[], str] = str,
    device: torch.device | None = None,
    remedies: str = _ANY_REMEDIES,
) -> Iterator[None]:
    """Turn an out-of-memory error into a sentence.

    Args:
        where: says which rank this is and at what stage; empty where nobody knows.
        device: whose memory is told; None: the main memory.
        remedies: what to do, as the end of the sentence.

    Raises:
        OutOfMemoryError: instead of what torch, numpy or Python raised.
    """
    try:
        yield
    except Exception as error:
        if not ran_out_of_memory(error):
            raise
        begin = f"{where()} ran out of memory".strip()
        raise OutOfMemoryError(f"{begin}: {_state(device, error)}; {remedies}") from error


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
