"""Configuration of the systems: networks, losses and optimizers, and the systems by name."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from t2i_hpc.config.fields import NO_VALUE, inherited, section, setting


@dataclass
class SystemConfig:
    """What every system has."""

    name: str = setting("", "the system's name")
    resolution: int = setting(
        256, "side of the generated images", unit="px", choices=(64, 128, 256)
    )
    noise_width: int = setting(100, "length of the noise vector", minimum=1)


@dataclass
class BERTConfig:
    """BERT instead of the LSTM: pretrained, or a new one of these sizes trained by DAMSM."""

    pretrained: str = setting(
        "",
        "model.safetensors of a pretrained BERT, with config.json beside it; data.tokenizer then "
        "names its tokenizer.json; empty: random weights and the shards' own vocabulary",
        file=True,
    )
    layers: int = setting(12, "transformer layers of a new one", minimum=1)
    heads: int = setting(8, "attention heads of a new one; they divide the width", minimum=1)
    feed_forward: int = setting(3072, "width of its feed-forward layers", minimum=1)
    dropout: float = setting(0.1, "dropout of a new one", minimum=0.0, maximum=0.95)
    pooling: str = setting(
        "mean",
        "sentence: the mean of a caption's tokens, or its first ([CLS])",
        choices=("mean", "first"),
    )
    first_token: int = setting(101, "token id of a pretrained one's [CLS]", minimum=0)
    last_token: int = setting(102, "token id of a pretrained one's [SEP]", minimum=0)


@dataclass
class TextEncoderConfig:
    """The network from captions to word and sentence features."""

    name: str = setting(
        "lstm",
        "lstm: bidirectional, over word embeddings (AttnGAN's DAMSM); bert: needs the extra "
        "t2i-hpc[transformers]; clip: that of system=clip_gan, which has no other",
        choices=("lstm", "bert", "clip"),
    )
    bert: BERTConfig = section(BERTConfig)
    weights: str = setting("", "safetensors file of pre-trained weights; empty: random", file=True)
    width: int = setting(256, "length of word and sentence vectors", minimum=2)
    embedding_width: int = setting(300, "length of word embeddings", minimum=1)
    dropout: float = setting(
        0.5, "dropout of word embeddings while it is trained", minimum=0.0, maximum=0.95
    )
    training: str = setting(
        "frozen",
        "frozen; damsm: trained on real pairs (released code); joint: by the generator's gradients "
        "too (paper)",
        choices=("frozen", "damsm", "joint"),
    )
    learning_rate: float = setting(4e-5, "Adam's learning rate while it is trained", minimum=0.0)
    clip: float | None = setting(
        None,
        "gradient norm clip while it is trained; empty: none (released code)",
        minimum=1e-9,
    )


@dataclass
class ImageEncoderConfig:
    """The network from images to DAMSM's regions and codes."""

    name: str = setting("inception_v3", "network", choices=("inception_v3", "efficientnet_lite0"))
    weights: str = setting(
        "",
        "safetensors file of the DAMSM image encoder; empty: packaged ImageNet weights",
        file=True,
    )
    side: int | None = setting(
        None,
        "side that efficientnet_lite0 sees, empty: its own, 224; 112 costs a quarter, and finds "
        "captions as well where images are of 64 px",
        unit="px",
        choices=(96, 112, 128, 160, 192),
        neutral=None,
    )
    align_corners: bool = setting(
        False,
        "resize to the network's size with aligned corners (DM-GAN; SSA-GAN and DF-GAN: false)",
    )
    batch_statistics: bool = setting(
        False,
        "normalize by the batch and move the running statistics while encoders are trained "
        "(released fine-tuning and AttnGAN's pre-training)",
    )


@dataclass
class DAMSMConfig:
    """Deep attentional multimodal similarity model (AttnGAN §3.2)."""

    weight: float = setting(
        0.05, "weight λ of DAMSM in the generator's loss; 0 leaves it out", minimum=0.0
    )
    gamma1: float = setting(5.0, "sharpness of the attention over regions", minimum=0.0)
    gamma2: float = setting(5.0, "sharpness of the sum over words", minimum=1e-6)
    gamma3: float = setting(10.0, "scale of the scores in the softmax over the batch", minimum=0.0)
    root: bool = setting(
        False, "root 1/γ₂ of the sum over words (AttnGAN Eq. 10; released code: false)"
    )
    terms: str = setting(
        "both", "scores to compare pairs by", choices=("both", "words", "sentence")
    )
    chunk: int | None = setting(
        None,
        "captions compared with the images at a time: less memory, same scores; empty: all",
        unit="captions",
        minimum=1,
        identity=False,
    )


@dataclass
class PretrainedTrunkConfig(ImageEncoderConfig):
    """The image encoder whose projections are pre-trained, and where its trunk comes from."""

    trunk: str = setting(
        "imagenet",
        "weights of the trunk, unless image_encoder.weights holds them: imagenet, or random "
        "(Inception-v3 alone; for trials without any file)",
        choices=("imagenet", "random"),
    )
    imagenet_weights: str = setting(
        "",
        "torchvision's Inception-v3 ImageNet weights (.pth or .safetensors); "
        "efficientnet_lite0 brings its own",
        file=True,
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
class OneStageConfig(PenaltyConfig):
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


@dataclass
class StagedGANConfig(GANConfig):
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
    augmentation: list[str] = inherited(OneStageConfig, "augmentation", [])
    augmentation_probability: float = inherited(OneStageConfig, "augmentation_probability")
    augmentation_target: float | None = inherited(OneStageConfig, "augmentation_target")
    augmentation_images: int = inherited(OneStageConfig, "augmentation_images")
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
