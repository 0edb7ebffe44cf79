"""Configuration of the systems by name, and of the pre-training of encoders."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from t2i_hpc.config.encoder_settings import DAMSMConfig, PretrainedTrunkConfig, TextEncoderConfig
from t2i_hpc.config.fields import inherited, section, setting
from t2i_hpc.config.gan_settings import SystemConfig
from t2i_hpc.config.one_stage_settings import (
    CLIPGANConfig,
    DFGANConfig,
    OneStageGANConfig,
    RATGANConfig,
    SSAGANConfig,
)
from t2i_hpc.config.staged_settings import (
    AttnDMGANConfig,
    DMAttnGANConfig,
    DMGANConfig,
    StagedGANConfig,
)


@dataclass
class DAMSMPretrainingConfig(SystemConfig):
    """Pre-training of DAMSM's encoders on real pairs, as AttnGAN's released pretrain_DAMSM."""

    name: str = inherited(SystemConfig, "name", "damsm")
    resolution: int = setting(
        256,
        "side of the images that the image encoder sees; 299 is Inception-v3's own",
        unit="px",
        choices=(64, 128, 256, 299),
    )
    learning_rate: float = setting(2e-3, "Adam's learning rate in the first epoch", minimum=0.0)
    learning_rate_decay: float = setting(
        0.98, "factor of the learning rate after each epoch", minimum=0.01, maximum=1.0
    )
    learning_rate_floor: float = setting(
        0.1,
        "fraction of the first learning rate below which it falls no further",
        minimum=1e-6,
        maximum=1.0,
    )
    restart_moments: bool = setting(True, "reset Adam's moments after each epoch")
    epoch_images: int | None = setting(
        None, "length of an epoch; empty: the training split's samples", unit="images", minimum=1
    )
    beta1: float = setting(0.5, "Adam's β₁", minimum=0.0, maximum=0.9999)
    beta2: float = setting(0.999, "Adam's β₂", minimum=0.0, maximum=0.99999)
    # Released code: RNN_GRAD_CLIP; the image encoder's projections are not clipped.
    text_encoder: TextEncoderConfig = section(partial(TextEncoderConfig, clip=0.25))
    image_encoder: PretrainedTrunkConfig = section(PretrainedTrunkConfig)
    # The released encoders were trained with γ₁ = 4; the papers say 5.
    damsm: DAMSMConfig = section(partial(DAMSMConfig, gamma1=4.0))


SYSTEM_SCHEMAS: dict[str, type[SystemConfig]] = {
    "ssa_gan": SSAGANConfig,
    "df_gan": DFGANConfig,
    "rat_gan": RATGANConfig,
    "clip_gan": CLIPGANConfig,
    "one_stage_gan": OneStageGANConfig,
    "attn_gan": StagedGANConfig,
    "dm_gan": DMGANConfig,
    "attndm_gan": AttnDMGANConfig,
    "dmattn_gan": DMAttnGANConfig,
    "damsm": DAMSMPretrainingConfig,
}


OTHER_JUDGE = "efficientnet_lite2"  # a detector that no system is trained against


def detector_within(system: SystemConfig) -> str:
    """Return the ``evaluation.detector`` whose network a system is trained against, "" for none."""
    if isinstance(system, CLIPGANConfig):
        return "clip"
    projected = getattr(system, "discriminator", "") == "projected"
    by_distance = getattr(system, "fd_weight", 0.0) > 0
    return "efficientnet_lite0" if projected or by_distance else ""
