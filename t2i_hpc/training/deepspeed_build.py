"""What DeepSpeed compiles its extensions with at its first start, and a lock that never hangs.

torch has one process compile while the others wait for a lock file to vanish. A process that is
killed meanwhile leaves the file behind, and all later ones would wait for ever. So processes of
ours take turns by a lock that dies with its holder, and whoever has it forgets the file.
"""

from __future__ import annotations

import fcntl
import importlib.util
import logging
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import IO

from t2i_hpc.common.errors import ConfigurationError

_LOG = logging.getLogger("t2i_hpc")


def require_compilation(wanted: str, otherwise: str, *, here: bool = True) -> None:
    """Check for DeepSpeed, ninja and a compiler.

    Args:
        wanted: the setting that needs them.
        otherwise: what to do without.
        here: whether this machine is the one that compiles; another may have another compiler.

    Raises:
        ConfigurationError: one of them is missing.
    """
    missing = [name for name in ("deepspeed", "ninja") if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigurationError(
            f"{wanted} needs {' and '.join(missing)}: pip install 't2i-hpc[deepspeed]', or "
            f"{otherwise}"
        )
    compiler = os.environ.get("CXX", "g++")
    if here and shutil.which(compiler) is None:
        raise ConfigurationError(
            f"{wanted} compiles an extension of DeepSpeed at its first start and finds no "
            f"{compiler}: load a compiler module or set CXX, or {otherwise}"
        )


@contextmanager
def compiling() -> Iterator[None]:
    """Let this process alone compile, or find what another has compiled.

    Raises:
        ConfigurationError: what is compiled cannot be written where it belongs.
    """
    from torch.utils.cpp_extension import get_default_build_root

    folder = Path(os.environ.get("TORCH_EXTENSIONS_DIR") or get_default_build_root())
    try:
        folder.mkdir(parents=True, exist_ok=True)
        stream = (folder / "t2i_hpc.lock").open("w")
    except OSError as error:
        raise ConfigurationError(
            f"cannot write what DeepSpeed compiles into {folder} ({error.strerror}): set "
            "TORCH_EXTENSIONS_DIR to a folder that can be written"
        ) from error
    with stream:
        if _lock(stream, folder):
            for pattern in ("*/lock", "*/*/lock"):
                for left in folder.glob(pattern):
                    left.unlink(missing_ok=True)
        _ask_about_the_processor_once()
        with _own_ninja():
            yield


def _ask_about_the_processor_once() -> None:
    """Let py-cpuinfo, which runs ten programs for an answer, give DeepSpeed the same one again.

    DeepSpeed asks for each optimizer and each extension: more than a second every time.
    """
    import cpuinfo

    if not hasattr(cpuinfo.get_cpu_info, "cache_info"):
        cpuinfo.get_cpu_info = cache(cpuinfo.get_cpu_info)


@contextmanager
def _own_ninja() -> Iterator[None]:
    """Put the ninja of this Python first, as an activated environment does.

    torch runs whatever ninja PATH has. One of another version cannot read the log of the last
    build: it compiles everything again, or fails, while the other ranks wait.
    """
    before = os.environ.get("PATH", "")
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), before])
    try:
        yield
    finally:
        os.environ["PATH"] = before


def _lock(stream: IO[str], folder: Path) -> bool:
    """Take the lock; return False, and say so, on a file system without any.

    torch's own files still keep two processes apart there; nobody may remove them.
    """
    try:
        fcntl.flock(stream, fcntl.LOCK_EX)
    except OSError as error:
        _LOG.warning(
            "the file system of %s has no file locks (%s): if this start hangs, a killed process "
            "has left a file called lock there, so remove it, or set TORCH_EXTENSIONS_DIR to a "
            "folder on a local disk",
            folder,
            error.strerror,
        )
        return False
    return True
