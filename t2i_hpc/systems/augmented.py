"""Augmentation of what a GAN's discriminators see, as it is configured."""

from __future__ import annotations

from torch import nn

from t2i_hpc.config.one_stage_settings import OneStageConfig
from t2i_hpc.config.staged_settings import StagedGANConfig
from t2i_hpc.models.augmentation import Augmentation
from t2i_hpc.systems.base import refuse_settings


def build_augmentation(config: OneStageConfig | StagedGANConfig) -> Augmentation:
    """Build what a configuration asks for; without kinds it changes nothing.

    Raises:
        ConfigurationError: settings that would have no effect.
    """
    defaults = OneStageConfig
    refuse_settings(
        {
            name: not config.augmentation and getattr(config, name) != getattr(defaults, name)
            for name in ("augmentation_probability", "augmentation_target", "augmentation_images")
        },
        "has no effect without system.augmentation: name what to change, e.g. "
        "[color,translation,cutout]",
    )
    return Augmentation(
        config.augmentation,
        config.augmentation_probability,
        config.augmentation_target,
        config.augmentation_images,
    )


def kept(augmentation: Augmentation) -> dict[str, nn.Module]:
    """Return what a checkpoint holds of it: a probability that moves."""
    return {"augmentation": augmentation} if augmentation.adapts else {}
