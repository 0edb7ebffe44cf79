"""Systems: networks and the ordered phases of one training step, by name."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch

from t2i_hpc.common.errors import ConfigurationError, UserError
from t2i_hpc.config.systems import SystemConfig
from t2i_hpc.config.tasks import SYSTEM_SCHEMAS
from t2i_hpc.systems.base import System
from t2i_hpc.systems.damsm import DAMSMPretraining
from t2i_hpc.systems.df_gan import DFGAN
from t2i_hpc.systems.encoders import checkpoint_follows
from t2i_hpc.systems.ssa_gan import SSAGAN
from t2i_hpc.systems.staged_gan import StagedGAN

SYSTEMS: dict[str, Callable[[Any, int], System]] = {
    "ssa_gan": SSAGAN,
    "df_gan": DFGAN,
    "attn_gan": StagedGAN,
    "dm_gan": StagedGAN,
    "attndm_gan": StagedGAN,
    "dmattn_gan": StagedGAN,
    "damsm": DAMSMPretraining,
}


def register_system(
    name: str, schema: type[SystemConfig], build: Callable[[Any, int], System]
) -> None:
    """Add a system of one's own, to be called before a door is opened.

    Args:
        name: what ``system.name`` says, and ``schema_<name>`` in a file of ``system/``.
        schema: its configuration dataclass.
        build: makes it from the configuration and the number of word ids.

    Raises:
        ConfigurationError: there is a system of that name.
    """
    if name in SYSTEMS or name in SYSTEM_SCHEMAS:
        raise ConfigurationError(f"there is a system {name} already: choose another name")
    SYSTEMS[name], SYSTEM_SCHEMAS[name] = build, schema


def build_system(config: SystemConfig, vocabulary_size: int) -> System:
    """Build the system that `config` names, with weights drawn from torch's generator.

    Args:
        config: the system's own configuration dataclass.
        vocabulary_size: number of word ids of the data's vocabulary.

    Raises:
        ConfigurationError: values that do not fit together.
    """
    return SYSTEMS[config.name](config, vocabulary_size)


def outline_system(config: SystemConfig, vocabulary_size: int) -> System | None:
    """Return a system without numbers: names, shapes and phases, in no memory and no time.

    Args:
        config: as :func:`build_system` takes it.
        vocabulary_size: likewise.

    Returns:
        The system, its tensors on torch's device ``meta``; None where a user-defined one needs
        numbers to be built.

    Raises:
        ConfigurationError: values that do not fit together.
    """
    try:
        with torch.device("meta"), checkpoint_follows(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that packaged weights go nowhere
            return build_system(config, vocabulary_size)
    except UserError:
        raise
    except Exception:  # whatever it is, building the system itself says it
        return None
