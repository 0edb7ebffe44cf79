"""Configuration of DF-GAN's CVPR 2022 version."""

from __future__ import annotations

from dataclasses import dataclass

from t2i_hpc.config.fields import section, setting
from t2i_hpc.config.system import OptimiserConfig, SystemConfig, TextEncoderConfig


@dataclass
class DFGANConfig(SystemConfig):
    """DF-GAN as of CVPR 2022 (Tao et al.); its first version is ssa_gan with block=affine."""

    name: str = setting("df_gan", "the system's name")
    generator_width: int = setting(32, "channel unit nf of the generator", minimum=1)
    discriminator_width: int = setting(32, "channel unit nf of the discriminator", minimum=1)
    mismatch: str = setting(
        "roll",
        "wrong captions for real images: roll = image i with caption i+1, cyclic over the "
        "global batch (released code, which rolls the images); shift = without the last",
        choices=("roll", "shift"),
    )
    truncation: float = setting(
        0.88,
        "scale of the noise, cut at two standard deviations, that pictures are drawn from "
        "(released code); 0: the noise as it is",
        minimum=0.0,
        maximum=1.0,
    )
    average_images: float = setting(
        0.0,
        "half-life of the running average of the generator's weights, which then draws; 0: none "
        "(as the paper)",
        unit="images",
        minimum=0.0,
    )
    average_ramp: bool = setting(
        True,
        "begin with a shorter half-life, half the images seen, so that the average forgets the "
        "first weights; false: the same decay from the first step on (AttnGAN's and DM-GAN's code)",
    )
    penalty_weight: float = setting(
        2.0, "weight of the matching-aware gradient penalty", minimum=0.0
    )
    penalty_power: float = setting(6.0, "power of the gradient's norm", minimum=2.0)
    text_encoder: TextEncoderConfig = section(TextEncoderConfig)
    optimiser: OptimiserConfig = section(OptimiserConfig)
