"""The smallest form of every text-to-image system, as overrides."""

from __future__ import annotations

from typing import Any

from t2i_hpc.config.compose import compose_config
from t2i_hpc.config.tasks import TrainConfig
from t2i_hpc.systems import build_system
from tests.support.clip import tiny_clip
from tests.support.training import ENGINE

COMMON = (
    "system.resolution=64",
    "system.text_encoder.width=16",
    "system.text_encoder.embedding_width=12",
    *ENGINE,
)
TINY = (
    *COMMON,
    "system.generator_width=2",
    "system.discriminator_width=2",
    "system.noise_width=8",
    "system.ema_images=16",
)
STAGED = ("system.condition_width=5", "system.residuals=1")
DAMSM = ("system.image_encoder.name=efficientnet_lite0", "system.damsm.weight=0.125")
NO_DAMSM = ("system.damsm.weight=0",)
AUGMENTED = (
    "system.augmentation=[color,translation,cutout,flip]",
    "system.augmentation_probability=0.5",
    "system.augmentation_target=0.6",
    "system.augmentation_images=32",
)
NOT_AUGMENTED = (
    "system.augmentation=[]",
    "system.augmentation_probability=1.0",
    "system.augmentation_target=null",
    "system.augmentation_images=500000",
)
FRECHET = ("system.fd_weight=0.01", "system.fd_half_life=8", "system.fd_real_images=7")
SYSTEMS: dict[str, tuple[str, ...]] = {
    "ssa_gan": ("system=ssa_gan", "system.mask_width=4", *NO_DAMSM),
    "affine": ("system=ssa_gan", "system.block=affine", *NO_DAMSM),
    "bert": (
        "system=ssa_gan",
        "system.mask_width=4",
        "system.text_encoder.name=bert",
        "system.text_encoder.training=joint",
        "system.text_encoder.bert.layers=1",
        "system.text_encoder.bert.heads=4",
        "system.text_encoder.bert.feed_forward=32",
        *DAMSM,
    ),
    "df_gan": ("system=df_gan",),
    "rat_gan": ("system=rat_gan",),
    "clip_gan": (
        "system=clip_gan",
        f"system.clip={tiny_clip() / 'model.safetensors'}",
        f"data.tokenizer={tiny_clip() / 'tokenizer.json'}",
        "system.levels=[0,1,2]",
        "system.prompts=2",
        "system.bridge_width=4",
    ),
    "one_stage_gan": (
        "system=one_stage_gan",
        *AUGMENTED,
        "system.generator=df",
        "system.loss=relativistic",
        "system.penalty=r1r2",
        "system.penalty_weight=0.1",
        "system.discriminator_schedule=merged",
        *NO_DAMSM,
    ),
    "projected": (
        "system=ssa_gan",
        "system.mask_width=4",
        "system.discriminator=projected",
        "system.projection_side=64",
        "system.penalty=none",
        *NO_DAMSM,
        *FRECHET,
    ),
    "attn_gan": ("system=attn_gan", *STAGED, *DAMSM),
    "attn_dcgan": (
        "system=attn_gan",
        "system.pictures=last",
        "system.unconditional=false",
        *STAGED,
        *NO_DAMSM,
    ),
    "dm_gan": ("system=dm_gan", *STAGED, *NO_DAMSM),
    "attndm_gan": ("system=attndm_gan", "system.mismatch=roll", *AUGMENTED, *STAGED, *NO_DAMSM),
    "dmattn_gan": ("system=dmattn_gan", "system.reference_mask=true", *STAGED, *NO_DAMSM),
}


def configured(name: str, *overrides: str) -> TrainConfig:
    """Compose the configuration of a tiny system."""
    return compose_config("train", [*SYSTEMS[name], *TINY, *overrides], TrainConfig)


def built(name: str, *overrides: str) -> Any:
    """Build a tiny system for a vocabulary of 20 tokens."""
    return build_system(configured(name, *overrides).system, 20)


def built_encoders() -> Any:
    """Build tiny encoders to be pre-trained, for as many tokens."""
    overrides = [*COMMON, "system.image_encoder.name=efficientnet_lite0", "system.epoch_images=8"]
    return build_system(compose_config("pretrain", overrides, TrainConfig).system, 20)
