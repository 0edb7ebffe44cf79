"""t2i_hpc: distributed training and evaluation of text-to-image GANs on HPC clusters."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from t2i_hpc.common.process import wait_briefly

if TYPE_CHECKING:
    from t2i_hpc.sampling.loading import load_run

__all__ = ["__version__", "load_run"]
__version__ = "0.2.0"

wait_briefly(os.environ)  # here, because no module of ours can import torch before this one


def __getattr__(name: str) -> object:
    """Give ``load_run`` when it is asked for: commands that need no torch do not import it."""
    if name == "load_run":
        from t2i_hpc.sampling.loading import load_run

        return load_run
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
