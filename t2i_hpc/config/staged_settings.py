"""Configuration of the GANs in stages: AttnGAN, DM-GAN and what is between them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from t2i_hpc.config.encoder_settings import (
    DAMSMConfig,
    ImageEncoderConfig,
)
from t2i_hpc.config.fields import inherited, section, setting
from t2i_hpc.config.gan_settings import AugmentedConfig, GANConfig, OptimizerConfig


@dataclass
class StagedGANConfig(AugmentedConfig):
    """GANs that generate in stages. The defaults are AttnGAN's, as its released code trains it.

    Fewer stages: stages=[initial,attention] resolution=128. AttnDCGAN: pictures=last
    unconditional=false residuals=0. The released EMA depends on the batch: ema_images=693 × batch.
    """

    name: str = setting(
        "attn_gan",
        "the system's name",
        choices=("attn_gan", "dm_gan", "attndm_gan", "dmattn_gan"),
    )
    stages: list[str] = setting(
        ["initial", "attention", "attention"],
        "stages of the generator; the last generates at the resolution, each before it "
        "at half of the next: initial, then attention (AttnGAN) or memory (DM-GAN)",
        choices=("initial", "attention", "memory"),
    )
    condition_width: int = setting(
        100, "length of the condition sampled for a sentence (CA)", minimum=1
    )
    residuals: int = setting(2, "residual blocks of each stage but the first", minimum=0, maximum=8)
    pictures: str = setting(
        "every",
        "stages that generate an image and have a discriminator: every, or the last (AttnDCGAN)",
        choices=("every", "last"),
    )
    discriminator_norm: str = setting(
        "batch",
        "batch = batch norm (AttnGAN); spectral = spectrally normalized convolutions (DM-GAN)",
        choices=("batch", "spectral"),
    )
    unconditional: bool = setting(
        True, "discriminators have logits of images alone too (AttnDCGAN: false)"
    )
    reference_mask: bool = setting(
        False,
        "hide padding from the attention in the released code's wrong order, which published "
        "weights were trained with; an image then depends on the others of its batch",
    )
    sample_condition: bool = setting(
        True,
        "sample the sentence's condition in evaluation too, from the noise (released code); false: "
        "take its mean",
    )
    divergence_weight: float = setting(
        1.0, "weight of the condition's divergence from the normal distribution", minimum=0.0
    )
    generator_width: int = inherited(GANConfig, "generator_width", 32)
    # Released code, under the PyTorch of its time.
    image_encoder: ImageEncoderConfig = section(partial(ImageEncoderConfig, align_corners=True))
    damsm: DAMSMConfig = section(partial(DAMSMConfig, weight=5.0, gamma1=4.0))
    optimizer: OptimizerConfig = section(
        partial(
            OptimizerConfig,
            generator_learning_rate=2e-4,
            discriminator_learning_rate=2e-4,
            beta1=0.5,
            beta2=0.999,
        )
    )


@dataclass
class DMGANConfig(StagedGANConfig):
    """DM-GAN (Zhu et al., CVPR 2019), as its released code trains it."""

    name: str = inherited(StagedGANConfig, "name", "dm_gan")
    stages: list[str] = inherited(StagedGANConfig, "stages", ["initial", "memory", "memory"])
    generator_width: int = inherited(GANConfig, "generator_width", 64)  # GF_DIM
    discriminator_width: int = inherited(GANConfig, "discriminator_width", 32)  # DF_DIM
    discriminator_norm: str = inherited(StagedGANConfig, "discriminator_norm", "spectral")


@dataclass
class AttnDMGANConfig(DMGANConfig):
    """AttnDM-GAN: attention, then memory. What its paper leaves open is DM-GAN's here."""

    name: str = inherited(StagedGANConfig, "name", "attndm_gan")
    stages: list[str] = inherited(StagedGANConfig, "stages", ["initial", "attention", "memory"])


@dataclass
class DMAttnGANConfig(DMGANConfig):
    """DMAttn-GAN: memory, then attention. What its paper leaves open is DM-GAN's here."""

    name: str = inherited(StagedGANConfig, "name", "dmattn_gan")
    stages: list[str] = inherited(StagedGANConfig, "stages", ["initial", "memory", "attention"])
