"""SSA-GAN's networks from its configuration, and which settings do not go together."""

from __future__ import annotations

from t2i_hpc.common.errors import ConfigurationError
from t2i_hpc.config.system import SSAGANConfig
from t2i_hpc.models.df_generator import EarlyDFGenerator
from t2i_hpc.models.ssa_generator import SSAGenerator
from t2i_hpc.systems.settings import refuse_settings


def build_generator(config: SSAGANConfig) -> SSAGenerator | EarlyDFGenerator:
    """Build the generator that `config` describes.

    Raises:
        ConfigurationError: settings that do not fit together.
    """
    if config.block == "affine":
        return _build_affine_generator(config)
    try:
        return SSAGenerator(
            config.resolution,
            width=config.generator_width,
            noise_width=config.noise_width,
            sentence_width=config.text_encoder.width,
            blocks=config.blocks,
            masks=config.masks,
            mask_width=config.mask_width,
            mask_source=config.mask_source,
            modulation=config.modulation,
        )
    except ValueError as error:
        raise ConfigurationError(f"system.blocks or system.masks: {error}") from error


def _build_affine_generator(config: SSAGANConfig) -> EarlyDFGenerator:
    """Build the generator without SSACN blocks: DF-GAN's first version.

    Raises:
        ConfigurationError: a setting of the SSACN blocks, which are not there.
    """
    given = {"blocks": config.blocks is not None, "masks": bool(config.masks)}
    given |= {
        "mask_source": config.mask_source != "code",
        "modulation": config.modulation != "code",
    }
    refuse_settings(given, "belongs to system.block=ssacn: leave it out with system.block=affine")
    return EarlyDFGenerator(
        config.resolution,
        width=config.generator_width,
        noise_width=config.noise_width,
        sentence_width=config.text_encoder.width,
    )


def check_encoders(config: SSAGANConfig) -> None:
    """Refuse settings of trained encoders where they are frozen.

    Raises:
        ConfigurationError: such a setting is given.
    """
    if config.text_encoder.training != "frozen":
        return
    given = {
        "text_encoder.clip": config.text_encoder.clip is not None,
        "image_encoder.batch_statistics": config.image_encoder.batch_statistics,
    }
    refuse_settings(
        given, "has no effect on frozen encoders: take system.text_encoder.training=damsm or joint"
    )
