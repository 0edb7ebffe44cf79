"""Configuration of the GANs that draw in stages: AttnGAN, DM-GAN and their hybrids."""

from __future__ import annotations

from dataclasses import dataclass

from t2i_hpc.config.fields import section, setting
from t2i_hpc.config.system import (
    DAMSMConfig,
    ImageEncoderConfig,
    OptimiserConfig,
    SystemConfig,
    TextEncoderConfig,
)


@dataclass
class StagedDAMSMConfig(DAMSMConfig):
    """DAMSM as AttnGAN and DM-GAN use it."""

    weight: float = setting(
        5.0, "weight λ of DAMSM in the generator's loss; 0 leaves it out", minimum=0.0
    )
    gamma1: float = setting(4.0, "sharpness of the attention over regions", minimum=0.0)


@dataclass
class StagedOptimiserConfig(OptimiserConfig):
    """Adam as AttnGAN and DM-GAN use it."""

    generator_learning_rate: float = setting(2e-4, "Adam's learning rate", minimum=0.0)
    discriminator_learning_rate: float = setting(2e-4, "Adam's learning rate", minimum=0.0)
    beta1: float = setting(0.5, "Adam's β₁", minimum=0.0, maximum=0.9999)
    beta2: float = setting(0.999, "Adam's β₂", minimum=0.0, maximum=0.99999)


@dataclass
class StagedGANConfig(SystemConfig):
    """GANs that draw in stages: AttnGAN, DM-GAN and their hybrids."""

    name: str = setting(
        "attn_gan",
        "the system's name",
        choices=("attn_gan", "dm_gan", "attndm_gan", "dmattn_gan"),
    )
    stages: list[str] = setting(
        ["initial", "attention", "attention"],
        "stages of the generator, first to last; the last draws at the resolution, each before it "
        "at half of the next: initial, then attention (AttnGAN) or memory (DM-GAN)",
        choices=("initial", "attention", "memory"),
    )
    generator_width: int = setting(32, "channel unit ngf of the generator", minimum=1)
    discriminator_width: int = setting(64, "channel unit ndf of the discriminators", minimum=1)
    condition_width: int = setting(
        100, "length of the condition that is drawn for a sentence", minimum=1
    )
    residuals: int = setting(2, "residual blocks of each stage but the first", minimum=0, maximum=8)
    pictures: str = setting(
        "every",
        "stages that draw an image and have a discriminator: every, or the last alone (AttnDCGAN)",
        choices=("every", "last"),
    )
    discriminator_norm: str = setting(
        "batch",
        "batch = batch norm (AttnGAN); spectral = spectrally normalised convolutions (DM-GAN)",
        choices=("batch", "spectral"),
    )
    unconditional: bool = setting(
        True, "discriminators judge images without their sentence too (AttnDCGAN: false)"
    )
    mismatch: str = setting(
        "shift",
        "wrong captions for real images: shift = image i with caption i+1, without the "
        "last (released code, which sorts a batch by the captions' lengths before); roll = cyclic "
        "over the global batch",
        choices=("shift", "roll"),
    )
    reference_mask: bool = setting(
        False,
        "hide padding from the attention in the released code's wrong order, which published "
        "weights were trained with; a picture then depends on those it is drawn with",
    )
    sample_condition: bool = setting(
        True,
        "draw the sentence's condition in evaluation too, from the noise (released code); false: "
        "take its mean",
    )
    divergence_weight: float = setting(
        1.0, "weight of the condition's divergence from the normal distribution", minimum=0.0
    )
    average_images: float = setting(
        0.0,
        "half-life of the running average of the generator's weights, which then draws; 0: none; "
        "693 steps are the released decay of 0.999 a step",
        unit="images",
        minimum=0.0,
    )
    average_ramp: bool = setting(
        True,
        "begin with a shorter half-life, half the images seen, so that the average forgets the "
        "first weights; false: the same decay from the first step on (AttnGAN's and DM-GAN's code)",
    )
    text_encoder: TextEncoderConfig = section(TextEncoderConfig)
    image_encoder: ImageEncoderConfig = section(ImageEncoderConfig)
    damsm: StagedDAMSMConfig = section(StagedDAMSMConfig)
    optimiser: StagedOptimiserConfig = section(StagedOptimiserConfig)
