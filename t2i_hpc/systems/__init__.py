"""Systems: networks and the ordered phases of one training step, by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from t2i_hpc.common.step import System
from t2i_hpc.config.system import SystemConfig
from t2i_hpc.systems.damsm import DAMSMPretraining
from t2i_hpc.systems.ssa_gan import SSAGAN

SYSTEMS: dict[str, Callable[[Any, int], System]] = {
    "ssa_gan": SSAGAN,
    "damsm": DAMSMPretraining,
}


def build_system(config: SystemConfig, vocabulary_size: int) -> System:
    """Build the system that `config` names, with weights drawn from torch's generator.

    Args:
        config: the system's own configuration dataclass.
        vocabulary_size: number of word ids of the data's vocabulary.

    Raises:
        ConfigurationError: values that do not fit together.
    """
    return SYSTEMS[config.name](config, vocabulary_size)
