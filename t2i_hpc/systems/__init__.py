"""Systems: networks and the ordered phases of one training step, built from their configuration."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch

from t2i_hpc.common.errors import ConfigurationError, UserError
from t2i_hpc.config.gan_settings import SystemConfig
from t2i_hpc.config.one_stage_settings import CLIPGANConfig, OneStageConfig
from t2i_hpc.config.staged_settings import StagedGANConfig
from t2i_hpc.config.systems import SYSTEM_SCHEMAS, DAMSMPretrainingConfig
from t2i_hpc.systems.base import System
from t2i_hpc.systems.damsm_pretraining import DAMSMPretraining
from t2i_hpc.systems.encoders import outlining
from t2i_hpc.systems.one_stage_gan import OneStageGAN
from t2i_hpc.systems.staged_gan import StagedGAN


def _clip_gan(config: CLIPGANConfig, vocabulary_size: int) -> System:
    from t2i_hpc.systems.clip_gan import CLIPGAN  # networks that no other system has

    return CLIPGAN(config, vocabulary_size)


# A configuration that none is registered for is built as the class it derives from.
_BUILDERS: dict[type[SystemConfig], Callable[[Any, int], System]] = {
    OneStageConfig: OneStageGAN,
    CLIPGANConfig: _clip_gan,
    StagedGANConfig: StagedGAN,
    DAMSMPretrainingConfig: DAMSMPretraining,
}


def register_system(
    name: str, schema: type[SystemConfig], build: Callable[[Any, int], System]
) -> None:
    """Add a user-defined system; call it before a command runs.

    Args:
        name: what ``system=`` then offers.
        schema: its configuration dataclass.
        build: makes it from the configuration and the number of token ids.

    Raises:
        ConfigurationError: the name is taken, or the schema is another system's.
    """
    if name in SYSTEM_SCHEMAS:
        raise ConfigurationError(f"there is a system {name} already: choose another name")
    if schema in _BUILDERS or schema in SYSTEM_SCHEMAS.values():
        raise ConfigurationError(
            f"{schema.__name__} is another system's configuration: derive a dataclass from it"
        )
    SYSTEM_SCHEMAS[name], _BUILDERS[schema] = schema, build


def build_system(config: SystemConfig, vocabulary_size: int) -> System:
    """Build the system of a configuration, with weights drawn from torch's generator.

    Args:
        config: the system's own configuration dataclass.
        vocabulary_size: number of token ids of the data's vocabulary.

    Raises:
        ConfigurationError: values that do not fit together.
    """
    build = next(_BUILDERS[schema] for schema in type(config).__mro__ if schema in _BUILDERS)
    return build(config, vocabulary_size)


def outline_system(config: SystemConfig, vocabulary_size: int) -> System | None:
    """Return a system without weights: names, shapes and phases, in no memory and no time.

    Args:
        config: as :func:`build_system` takes it.
        vocabulary_size: likewise.

    Returns:
        The system, its tensors on torch's device ``meta``; None where a user-defined one cannot
        be built there.

    Raises:
        ConfigurationError: values that do not fit together.
    """
    try:
        with torch.device("meta"), outlining(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # packaged weights are loaded to nowhere
            return build_system(config, vocabulary_size)
    except UserError:
        raise
    except Exception:  # whatever it is, building the system itself raises it
        return None
