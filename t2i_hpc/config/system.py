"""Configuration of the systems: the networks, their losses and their optimisers."""

from __future__ import annotations

from dataclasses import dataclass

from t2i_hpc.config.fields import section, setting


@dataclass
class SystemConfig:
    """What every system has."""

    name: str = setting("ssa_gan", "the system's name")
    resolution: int = setting(
        256, "side of the generated images", unit="px", choices=(64, 128, 256)
    )
    noise_width: int = setting(100, "length of the noise vector", minimum=1)


@dataclass
class TextEncoderConfig:
    """Bidirectional LSTM over word embeddings (AttnGAN's DAMSM text encoder)."""

    weights: str = setting("", "safetensors file of pre-trained weights; empty: random", file=True)
    width: int = setting(256, "length of word and sentence vectors", minimum=2)
    embedding_width: int = setting(300, "length of word embeddings", minimum=1)
    dropout: float = setting(
        0.5, "dropout on word embeddings while it is trained", minimum=0.0, maximum=0.95
    )
    training: str = setting(
        "frozen",
        "how it learns: frozen; damsm = from real pairs (released code); "
        "joint = damsm and the generator's gradients too (paper)",
        choices=("frozen", "damsm", "joint"),
    )
    learning_rate: float = setting(4e-5, "Adam's learning rate while it is trained", minimum=0.0)


@dataclass
class ImageEncoderConfig:
    """Network that gives DAMSM its image regions and image code."""

    name: str = setting("inception_v3", "network", choices=("inception_v3", "efficientnet_lite0"))
    weights: str = setting(
        "",
        "safetensors file of the DAMSM image encoder; empty: ImageNet "
        "weights of the network where they are at hand",
        file=True,
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


@dataclass
class DAMSMPretrainingConfig(SystemConfig):
    """Pre-training of DAMSM's text and image encoders on real pairs (AttnGAN §3.2)."""

    name: str = setting("damsm", "the system's name")
    resolution: int = setting(
        256,
        "side of the images that the image encoder sees",
        unit="px",
        choices=(64, 128, 256),
    )
    learning_rate: float = setting(2e-3, "Adam's learning rate", minimum=0.0)
    beta1: float = setting(0.5, "Adam's β₁", minimum=0.0, maximum=0.9999)
    beta2: float = setting(0.999, "Adam's β₂", minimum=0.0, maximum=0.99999)
    text_encoder: TextEncoderConfig = section(TextEncoderConfig)
    image_encoder: ImageEncoderConfig = section(ImageEncoderConfig)
    damsm: DAMSMConfig = section(DAMSMConfig)


@dataclass
class OptimiserConfig:
    """Adam for generator and discriminator."""

    generator_learning_rate: float = setting(1e-4, "Adam's learning rate", minimum=0.0)
    discriminator_learning_rate: float = setting(4e-4, "Adam's learning rate", minimum=0.0)
    beta1: float = setting(0.0, "Adam's β₁", minimum=0.0, maximum=0.9999)
    beta2: float = setting(0.9, "Adam's β₂", minimum=0.0, maximum=0.99999)


@dataclass
class SSAGANConfig(SystemConfig):
    """Semantic-spatial aware GAN (Hu et al., CVPR 2022)."""

    generator_width: int = setting(64, "channel unit ngf of the generator", minimum=1)
    discriminator_width: int = setting(64, "channel unit ndf of the discriminator", minimum=1)
    blocks: int | None = setting(
        None, "SSACN blocks; empty: one at each size from 4 px to the resolution", minimum=2
    )
    masks: int | None = setting(
        None,
        "blocks with a semantic mask, counted from the last one backwards; empty: all",
        minimum=0,
    )
    mask_width: int = setting(100, "channels inside the mask predictors", minimum=1)
    mismatch: str = setting(
        "shift",
        "wrong captions for real images: shift = image i with caption i+1, without the "
        "last (released code); roll = cyclic over the global batch",
        choices=("shift", "roll"),
    )
    penalty_weight: float = setting(
        2.0, "weight of the matching-aware gradient penalty", minimum=0.0
    )
    penalty_power: float = setting(6.0, "power of the gradient's norm", minimum=2.0)
    text_encoder: TextEncoderConfig = section(TextEncoderConfig)
    image_encoder: ImageEncoderConfig = section(ImageEncoderConfig)
    damsm: DAMSMConfig = section(DAMSMConfig)
    optimiser: OptimiserConfig = section(OptimiserConfig)
