"""Configuration of the encoders of text and images, and of DAMSM, which compares them."""

from __future__ import annotations

from dataclasses import dataclass

from t2i_hpc.config.fields import section, setting


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
