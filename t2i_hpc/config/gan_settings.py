"""Configuration that all systems, and all GANs, have."""

from __future__ import annotations

from dataclasses import dataclass

from t2i_hpc.config.encoder_settings import TextEncoderConfig
from t2i_hpc.config.fields import section, setting


@dataclass
class SystemConfig:
    """What every system has."""

    name: str = setting("", "the system's name")
    resolution: int = setting(
        256, "side of the generated images", unit="px", choices=(64, 128, 256)
    )
    noise_width: int = setting(100, "length of the noise vector", minimum=1)


@dataclass
class OptimizerConfig:
    """Adam for generator and discriminator."""

    generator_learning_rate: float = setting(1e-4, "Adam's learning rate", minimum=0.0)
    discriminator_learning_rate: float = setting(4e-4, "Adam's learning rate", minimum=0.0)
    scale: float = setting(
        1.0,
        "factor of both learning rates, whatever a paper's are; size= sets it",
        minimum=1e-6,
        neutral=1.0,
    )
    beta1: float = setting(0.0, "Adam's β₁", minimum=0.0, maximum=0.9999)
    beta2: float = setting(0.9, "Adam's β₂", minimum=0.0, maximum=0.99999)


@dataclass
class GANConfig(SystemConfig):
    """What every GAN has."""

    generator_width: int = setting(64, "channel unit of the generator (ngf)", minimum=1)
    discriminator_width: int = setting(64, "channel unit of each discriminator (ndf)", minimum=1)
    mismatch: str = setting(
        "shift",
        "wrong captions for real images: shift = image i with caption i+1, without the last "
        "(released code of SSA-GAN, AttnGAN and DM-GAN, which sorts a batch by the captions' "
        "lengths before); roll = cyclic over the global batch (DF-GAN's, which rolls the images)",
        choices=("shift", "roll"),
    )
    ema_images: float = setting(
        0.0,
        "half-life of the exponential moving average (EMA) of the generator's weights, which then "
        "generates; 0: none; 693 steps are AttnGAN's and DM-GAN's decay of 0.999 a step",
        unit="images",
        minimum=0.0,
    )
    ema_ramp: bool = setting(
        True,
        "begin the EMA with a shorter half-life, half the images seen, so that the first weights "
        "are soon forgotten; false: the same decay from the first step on (AttnGAN, DM-GAN)",
    )
    text_encoder: TextEncoderConfig = section(TextEncoderConfig)
    optimizer: OptimizerConfig = section(OptimizerConfig)


@dataclass
class AugmentedConfig(GANConfig):
    """A GAN whose discriminators see changed images, for small data sets."""

    augmentation: list[str] = setting(
        [],
        "changes of all images that the discriminator sees, real, generated and penalized alike, "
        "by each sample's own noise, for small data sets: color (brightness, saturation, "
        "contrast), translation, cutout (DiffAugment), flip",
        choices=("color", "translation", "cutout", "flip"),
        neutral=[],
    )
    augmentation_probability: float = setting(
        1.0,
        "probability of each change of an image; with augmentation_target where it begins",
        minimum=0.0,
        maximum=1.0,
        neutral=1.0,
    )
    augmentation_target: float | None = setting(
        None,
        "adapt the probability to overfitting: it rises while the mean sign of real logits is "
        "above this (ADA: 0.6) and falls below; empty: it stays",
        minimum=-1.0,
        maximum=1.0,
        neutral=None,
    )
    augmentation_images: int = setting(
        500_000,
        "images in which an adapted probability moves from 0 to 1",
        unit="images",
        minimum=1,
        neutral=500_000,
    )
