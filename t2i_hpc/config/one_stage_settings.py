"""Configuration of the GANs of one stage, by named parts."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from t2i_hpc.config.encoder_settings import (
    DAMSMConfig,
    ImageEncoderConfig,
    TextEncoderConfig,
)
from t2i_hpc.config.fields import NO_VALUE, inherited, section, setting
from t2i_hpc.config.gan_settings import AugmentedConfig, GANConfig, SystemConfig


@dataclass
class PenaltyConfig(GANConfig):
    """A GAN whose discriminator is kept from being steep at real pairs."""

    penalty: str = setting(
        "magp",
        "magp: matching-aware gradient penalty (DF-GAN §3.3); r1, r2, r1r2: square of the "
        "gradient's norm by the image, at real images, at generated ones, at both (R3GAN); "
        "finite_difference: square of what a little noise on an image changes its logit by, over "
        "the noise's size: no second derivative (Adversarial Flow Models); none. All but magp "
        "have another scale, so give penalty_weight too",
        choices=("magp", "r1", "r2", "r1r2", "finite_difference", "none"),
        neutral="magp",
    )
    penalty_weight: float = setting(
        2.0, "weight of the penalty; of r1 and r2 that is half of their papers' gamma", minimum=0.0
    )
    penalty_power: float = setting(6.0, "power of the gradient's norm (magp)", minimum=2.0)
    penalty_every: int = setting(
        1,
        "steps from one penalty to the next, which weighs as many times as much (lazy "
        "regularization, StyleGAN2)",
        unit="steps",
        minimum=1,
        neutral=1,
    )
    penalty_precision: str | None = setting(
        None,
        "what the penalty's convolutions run in, beside engine.precision; its norm and power are "
        "float32 in any case; empty: bf16 as the rest, but tf32 where the rest is fp16 and for "
        "finite_difference",
        choices=("tf32", "bf16", "fp32"),
        neutral=None,
    )
    penalty_epsilon: float = setting(
        0.01,
        "size of finite_difference's noise, whose image has a range of 2",
        minimum=1e-4,
        maximum=1.0,
        neutral=0.01,
    )


@dataclass
class OneStageConfig(PenaltyConfig, AugmentedConfig):
    """A GAN of one generator and one discriminator, each of them a part that has a name."""

    generator: str = setting("ssa", "the generator", choices=("ssa",), neutral="ssa")
    discriminator: str = setting(
        "matching",
        "matching: one-way, of pairs (SSA-GAN); df: the same, at most 8 units wide (DF-GAN of "
        "2022); projected: small heads on frozen EfficientNet-Lite0 features, with penalty=none "
        "(Projected GANs)",
        choices=("matching", "df", "projected"),
        neutral="matching",
    )
    projection_side: int | None = setting(
        None,
        "side that images are resized to for projected's frozen network; less is quicker; empty: "
        "the resolution, 224 at least",
        unit="px",
        minimum=64,
        maximum=1024,
        neutral=None,
    )
    loss: str = setting(
        "hinge",
        "hinge; relativistic: matching real pairs against generated and mismatched ones, by "
        "softplus of the logits' differences (R3GAN)",
        choices=("hinge", "relativistic"),
        neutral="hinge",
    )
    discriminator_schedule: str = setting(
        "two_steps",
        "two_steps = adversarial loss, then the penalty at the discriminator just updated "
        "(SSA-GAN's released code); merged = one loss, one step (SSA-GAN Eq. 6, DF-GAN's later "
        "code)",
        choices=("two_steps", "merged"),
    )
    penalty_norm: str = setting(
        "concatenated",
        "norm of magp's gradients by image and sentence: concatenated (released code), or the sum "
        "of both norms (SSA-GAN Eq. 6)",
        choices=("concatenated", "sum"),
    )
    truncation: float = setting(
        0.0,
        "generate from noise truncated at two standard deviations, times this; 0: from the noise "
        "as it is",
        minimum=0.0,
        maximum=1.0,
        neutral=0.0,
    )
    fd_weight: float = setting(
        0.0,
        "weight of the Fréchet distance to the training images, in EfficientNet-Lite0 features "
        "whose variance over these is 1, in the generator's loss; 0 leaves it out. Distances then "
        "flatter the run: compare it by other judges, and look at its images",
        minimum=0.0,
        neutral=0.0,
    )
    fd_from_images: int = setting(
        0,
        "images of training before the Fréchet distance joins the loss",
        unit="images",
        minimum=0,
        neutral=0,
    )
    fd_half_life: float = setting(
        10_000.0,
        "generated images after which one counts half in the running moments of that distance; "
        "several times its 496 features",
        unit="images",
        minimum=1.0,
        neutral=10_000.0,
    )
    fd_real_images: int = setting(
        50_000,
        "training images, the first of the stream, whose moments that distance aims at; all where "
        "there are fewer",
        unit="images",
        minimum=2,
        neutral=50_000,
    )
    fd_side: int | None = setting(
        None,
        "side that images are resized to for that distance's network; less is quicker; empty: that "
        "of projected's, else the resolution, 224 at least",
        unit="px",
        minimum=64,
        maximum=1024,
        neutral=None,
    )


@dataclass
class SSAGANConfig(OneStageConfig):
    """Semantic-spatial aware GAN (Hu et al., CVPR 2022), as its released code trains it.

    As the paper writes it: modulation=paper, mask_source=paper, penalty_norm=sum,
    discriminator_schedule=merged, damsm.weight=0.1, damsm.root=true, text_encoder.training=joint.
    As in the code in any case: the layers before RGB, and DAMSM's means over the batch, where the
    paper has sums (the λ of a sum is a batch size times smaller).
    """

    name: str = inherited(SystemConfig, "name", "ssa_gan")
    block: str = setting(
        "ssacn",
        "ssacn; affine = without masks and batch norm (first version of DF-GAN, "
        "SSA-GAN Table 2, ID0)",
        choices=("ssacn", "affine"),
    )
    blocks: int | None = setting(
        None, "SSACN blocks; empty: one at each size from 4 px to the resolution", minimum=2
    )
    masks: int | None = setting(
        None,
        "blocks with a semantic mask, counted from the last one backwards; empty: all",
        minimum=0,
    )
    mask_width: int = setting(100, "channels inside the mask predictors", minimum=1)
    mask_source: str = setting(
        "code",
        "what masks are predicted from: code = features before they are enlarged by the nearest "
        "pixel; paper = features enlarged bilinearly (SSA-GAN §3.2)",
        choices=("code", "paper"),
    )
    modulation: str = setting(
        "code",
        "normalized features x by mask m: code = x(1 + m gamma) + m beta; "
        "paper = m(gamma x + beta) (SSA-GAN Eq. 5)",
        choices=("code", "paper"),
    )
    image_encoder: ImageEncoderConfig = section(ImageEncoderConfig)
    damsm: DAMSMConfig = section(DAMSMConfig)


@dataclass
class DFGANConfig(OneStageConfig):
    """DF-GAN as of CVPR 2022 (Tao et al.); its first version is ssa_gan with block=affine."""

    name: str = inherited(SystemConfig, "name", "df_gan")
    generator_width: int = inherited(GANConfig, "generator_width", 32)
    discriminator_width: int = inherited(GANConfig, "discriminator_width", 32)
    mismatch: str = inherited(GANConfig, "mismatch", "roll")
    generator: str = setting("df", "the generator", choices=("df",), neutral="df")
    discriminator: str = inherited(OneStageConfig, "discriminator", "df", neutral="df")
    discriminator_schedule: str = inherited(
        OneStageConfig, "discriminator_schedule", "merged", neutral="merged"
    )
    penalty_norm: str = inherited(OneStageConfig, "penalty_norm", neutral="concatenated")
    # Released code; it always counted.
    truncation: float = inherited(OneStageConfig, "truncation", 0.88, neutral=NO_VALUE)


@dataclass
class RATGANConfig(OneStageConfig):
    """RAT-GAN (Ye et al., 2022): DF-GAN's first version, steered by a recurrence; no DAMSM."""

    name: str = inherited(SystemConfig, "name", "rat_gan")
    generator: str = setting("rat", "the generator", choices=("rat",), neutral="rat")


@dataclass
class CLIPGANConfig(PenaltyConfig):
    """GALIP (Tao et al., CVPR 2023): a frozen CLIP in generator and discriminator."""

    name: str = inherited(SystemConfig, "name", "clip_gan")
    resolution: int = setting(
        224,
        "side of the generated images; 224 is CLIP's own",
        unit="px",
        choices=(64, 128, 224, 256),
    )
    mismatch: str = inherited(GANConfig, "mismatch", "roll")
    clip: str = setting(
        "",
        "model.safetensors of a CLIP (ViT-B/32) in transformers' layout, with config.json and "
        "tokenizer.json beside it; data.tokenizer then names the latter",
        file=True,
    )
    clip_pixels: str = setting(
        "released",
        "how CLIP reads images: released = by the nearest pixel, and colors scaled to [1/2, 1] "
        "(GALIP's code halves them twice); clip = bicubic without aliases, as CLIP was trained",
        choices=("released", "clip"),
    )
    levels: list[int] = setting(
        [1, 4, 8], "blocks of CLIP, from 0, whose features the discriminator reads"
    )
    prompts: int = setting(
        8,
        "blocks of CLIP, from the second on, to which the generator gives a token of the condition",
        minimum=1,
    )
    bridge_width: int = setting(64, "channels of the generator before CLIP", minimum=1)
    similarity_weight: float = setting(
        4.0,
        "weight of the cosine of CLIP's codes of image and caption in the generator's loss; 0 "
        "leaves it out",
        minimum=0.0,
    )
    penalty: str = setting(
        "magp",
        "magp: matching-aware gradient penalty by CLIP's features and the sentence; none",
        choices=("magp", "none"),
        neutral="magp",
    )
    text_encoder: TextEncoderConfig = section(partial(TextEncoderConfig, name="clip", width=512))


@dataclass
class OneStageGANConfig(SSAGANConfig):
    """Any generator with any discriminator, loss and penalty; by default they are SSA-GAN's."""

    name: str = inherited(SystemConfig, "name", "one_stage_gan")
    generator: str = setting(
        "ssa",
        "ssa: semantic masks and batch norms (SSA-GAN); df: noise and sentence steer every layer "
        "(DF-GAN of 2022); rat: a recurrence does (RAT-GAN)",
        choices=("ssa", "df", "rat"),
    )
