"""Networks of a GAN that draws in stages, from its configuration, and what does not go together."""

from __future__ import annotations

from t2i_hpc.common.errors import ConfigurationError
from t2i_hpc.config.staged_gan import StagedGANConfig
from t2i_hpc.models.stage_blocks import initialise
from t2i_hpc.models.staged_discriminator import StagedDiscriminator
from t2i_hpc.models.staged_generator import SinglePictureGenerator, StagedGenerator
from t2i_hpc.systems.settings import refuse_settings


def build_generator(config: StagedGANConfig) -> StagedGenerator:
    """Build the generator that `config` describes, with its first weights.

    Raises:
        ConfigurationError: stages in another order, or more than the resolution has sizes for.
    """
    kind = SinglePictureGenerator if config.pictures == "last" else StagedGenerator
    try:
        generator = kind(
            config.stages,
            config.resolution,
            width=config.generator_width,
            noise_width=config.noise_width,
            sentence_width=config.text_encoder.width,
            condition_width=config.condition_width,
            residuals=config.residuals,
            reference_mask=config.reference_mask,
        )
    except ValueError as error:
        shown = ",".join(config.stages)
        raise ConfigurationError(f"system.stages=[{shown}]: {error}") from error
    initialise(generator)
    return generator


def build_discriminators(
    config: StagedGANConfig, generator: StagedGenerator
) -> dict[int, StagedDiscriminator]:
    """Build a discriminator for each size of image that the generator draws, by that size."""
    sides = [generator.resolutions[int(stage)] for stage in generator.to_rgb]
    found = {
        side: StagedDiscriminator(
            side,
            config.discriminator_width,
            config.text_encoder.width,
            norm=config.discriminator_norm,
            unconditional=config.unconditional,
        )
        for side in sides
    }
    for discriminator in found.values():
        initialise(discriminator)
    return found


def check_encoder(config: StagedGANConfig) -> None:
    """Refuse settings of encoders that are trained: here they are frozen.

    Raises:
        ConfigurationError: such a setting is given.
    """
    given = {
        "text_encoder.training": config.text_encoder.training != "frozen",
        "text_encoder.clip": config.text_encoder.clip is not None,
        "image_encoder.batch_statistics": config.image_encoder.batch_statistics,
    }
    refuse_settings(
        given,
        f"has no effect on {config.name}, whose encoders are frozen: leave it out, or take "
        "system=ssa_gan, which trains them",
    )
