"""Whether DeepSpeed is here, and what it compiles its small parts with at its first start."""

from __future__ import annotations

import importlib.util
import os
import shutil

from t2i_hpc.common.errors import ConfigurationError


def require_compilation(wanted: str, otherwise: str) -> None:
    """Check for DeepSpeed, ninja and a compiler.

    Args:
        wanted: the setting that needs them.
        otherwise: what to do without.

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
    if shutil.which(compiler) is None:
        raise ConfigurationError(
            f"{wanted} compiles a small part of DeepSpeed at its first start and finds no "
            f"{compiler}: load a compiler module or set CXX, or {otherwise}"
        )
