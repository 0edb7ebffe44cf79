"""Augmentation of what a GAN's discriminators see, as it is configured."""

from __future__ import annotations

from torch import nn

from t2i_hpc.config.gan_settings import AugmentedConfig
from t2i_hpc.models.augmentation import Augmentation
from t2i_hpc.systems.base import refuse_settings


def build_augmentation(config: AugmentedConfig) -> Augmentation:
    """Build what a configuration asks for; without kinds it changes nothing.

    Raises:
        ConfigurationError: settings that would have no effect.
    """
    settings = ("augmentation_probability", "augmentation_target", "augmentation_images")
    changed = [name for name in settings if getattr(config, name) != getattr(AugmentedConfig, name)]
    refuse_settings(
        dict.fromkeys(changed, not config.augmentation),
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
