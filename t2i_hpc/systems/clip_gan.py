"""GALIP's recipe (Tao et al., CVPR 2023): a frozen CLIP on both sides of a GAN.

Captions are CLIP's codes; the generator sends its maps through CLIP's image transformer, the
discriminator judges features of three of its blocks. The phases of a step:

1. ``discriminator``: hinge losses of real, mismatched and fake pairs, and the matching-aware
   gradient penalty by CLIP's features and sentences, not by pixels: the second derivative goes
   through a few small maps;
2. ``generator``: adversarial loss, and the cosine of CLIP's codes of images and captions.

CLIP is read from a local folder in transformers' layout, nothing is downloaded. A checkpoint holds
its weights as those of every other frozen network.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from t2i_hpc.common.errors import ConfigurationError
from t2i_hpc.config.one_stage_settings import CLIPGANConfig
from t2i_hpc.data.batches import Batch
from t2i_hpc.losses.adversarial import (
    at_least_float32,
    hinge_fake,
    hinge_generator,
    hinge_mismatch,
    hinge_real,
    mismatched,
)
from t2i_hpc.models import GeneratedImages
from t2i_hpc.models.clip_discriminator import CLIPDiscriminator, CLIPHead, CLIPTrunk
from t2i_hpc.models.clip_generator import CLIPGenerator
from t2i_hpc.models.clip_transformer import (
    TOKENIZER,
    CLIPTextEncoder,
    CLIPVision,
    own_names,
    special_tokens,
)
from t2i_hpc.models.pretrained_folder import PretrainedFolder
from t2i_hpc.models.text_encoder import TextFeatures
from t2i_hpc.systems.base import GAN, Losses, Phase, Term, refuse_settings
from t2i_hpc.systems.encoders import frozen, is_given, reads_initial_weights, scale_images
from t2i_hpc.systems.penalties import Penalty

_KEY = "system.clip"
_VISION = "clip"  # the network's name in checkpoints


@dataclass(frozen=True)
class CLIPGANStep:
    """What the phases of one step share.

    Attributes:
        sentence: CLIP's codes of the captions (B, S), without graph.
        noise: (B, noise_width).
        real: CLIP's levels of the real images (B, L, W, g, g), without graph.
        fake: those of the fakes, with the generator's graph; see :class:`Phase`, `redraw`.
        code: CLIP's codes of the fakes (B, S), likewise.
    """

    sentence: Tensor
    noise: Tensor
    real: Tensor
    fake: Tensor
    code: Tensor


class CLIPGAN(GAN):
    """The system ``clip_gan``; see the module's text."""

    config: CLIPGANConfig
    generator: CLIPGenerator
    generates_through = (_VISION,)

    def __init__(self, config: CLIPGANConfig, vocabulary_size: int) -> None:
        self.penalty = Penalty(config)
        text_encoder, self.vision = build_clip(config, vocabulary_size)
        vision, sentence_width = self.vision, text_encoder.width
        _check_blocks(config, len(vision.layers))
        generator = CLIPGenerator(
            config.resolution,
            width=config.generator_width,
            noise_width=config.noise_width,
            sentence_width=sentence_width,
            vision_width=vision.width,
            grid=vision.grid,
            prompts=config.prompts,
            bridge_width=config.bridge_width,
        )
        self.discriminator = CLIPDiscriminator(
            CLIPTrunk(vision.width, len(config.levels), config.discriminator_width),
            CLIPHead(config.discriminator_width, sentence_width, vision.grid),
        )
        networks = {"discriminator": self.discriminator}
        super().__init__(config, generator, networks, text_encoder, frozen={_VISION: vision})
        self.phases = [
            self.penalty.phase("discriminator", self.discriminator_losses, self.hinge_losses),
            Phase("generator", ("generator",), self.generator_losses, self.redraw),
        ]

    def begin(self, batch: Batch, noise: Tensor) -> CLIPGANStep:
        """Encode captions and real images, and generate the fakes of a step."""
        self.set_modes()
        with torch.no_grad():
            sentence = self.text_encoder(batch.tokens, batch.lengths).sentence
            real, _ = self._seen(scale_images(batch.images))
        return CLIPGANStep(sentence, noise, real, *self._fakes(noise, sentence))

    def redraw(self, step: CLIPGANStep) -> CLIPGANStep:
        """Generate the same fakes with graph; there are no running statistics."""
        fake, code = self._fakes(step.noise, step.sentence)
        return replace(step, fake=fake, code=code)

    def _fakes(self, noise: Tensor, sentence: Tensor) -> tuple[Tensor, Tensor]:
        images = self.generator(noise, sentence, self.vision).images[-1]
        return self._seen(images)

    def _seen(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return CLIP's levels (B, L, W, g, g) and codes (B, S) of images (B, 3, R, R)."""
        levels, code = self.vision(
            self.vision.normalized(images, self.config.clip_pixels), self.config.levels
        )
        return levels, code

    def discriminator_features(self, images: Tensor) -> Tensor:
        """Return the trunk's features (B, 8·width, g, g) of images (B, 3, R, R) in [-1, 1]."""
        return self.discriminator.features(self._seen(images)[0])

    def synthesize(
        self, generator: nn.Module, text: TextFeatures, lengths: Tensor, noise: Tensor
    ) -> GeneratedImages:
        """Run the generator, or its EMA, and cut its colors off at [-1, 1]."""
        made: GeneratedImages = generator(noise, text.sentence, self.vision)
        return replace(made, images=[image.clamp(-1, 1) for image in made.images])

    def discriminator_losses(self, step: CLIPGANStep) -> Losses:
        """Hinge losses and the penalty from one forward of the real pairs."""
        network = self.discriminator
        penalty, real, matching = self.penalty.pairs(network, step.real, step.sentence, step.noise)
        return {**self._hinge(step, matching, real), "gradient": self.penalty.term(penalty)}

    def hinge_losses(self, step: CLIPGANStep) -> Losses:
        """Hinge losses without the penalty."""
        real = self.discriminator.features(step.real)
        return self._hinge(step, self.discriminator.logits(real, step.sentence), real)

    def _hinge(self, step: CLIPGANStep, matching: Tensor, real: Tensor) -> Losses:
        """Hinge losses of matching logits (B,) and of features of real images."""
        logits = self.discriminator.logits
        wrong = logits(real, mismatched(step.sentence))
        fake = self.discriminator(step.fake.detach(), step.sentence)
        return {
            "real": Term(hinge_real(matching)),
            "mismatch": Term(hinge_mismatch(wrong, self.config.mismatch), 0.5),
            "fake": Term(hinge_fake(fake), 0.5),
        }

    def generator_losses(self, step: CLIPGANStep) -> Losses:
        """Adversarial loss of the fakes, and how far CLIP finds them from their captions."""
        with frozen(self.discriminator):
            logits = self.discriminator(step.fake, step.sentence)
        losses = {"adversarial": Term(hinge_generator(logits))}
        if weight := self.config.similarity_weight:
            code, sentence = at_least_float32(step.code), at_least_float32(step.sentence)
            cosine = F.cosine_similarity(code, sentence).mean()
            losses["similarity"] = Term(-cosine, weight)
        return losses


def build_clip(config: CLIPGANConfig, vocabulary_size: int) -> tuple[CLIPTextEncoder, CLIPVision]:
    """Build both halves of the CLIP that `config` names.

    Args:
        config: of the system.
        vocabulary_size: number of the data's token ids.

    Raises:
        ConfigurationError: a file is missing or damaged, the data has other tokens, or a setting
            of other text encoders is given.
    """
    _check_text_settings(config)
    folder = PretrainedFolder.open(
        config.clip,
        _KEY,
        "clip",
        (TOKENIZER,),
        weights=not is_given(_VISION),
        error=ConfigurationError,
    )
    try:
        text, vision = _halves(folder)
    except (KeyError, TypeError, ValueError, OSError, ZeroDivisionError) as error:
        raise ConfigurationError(
            f"{_KEY}={config.clip} cannot be read ({error}): copy the folder again"
        ) from error
    if len(text.tokens.weight) != vocabulary_size:
        raise ConfigurationError(
            f"{_KEY}={config.clip} knows {len(text.tokens.weight):,} tokens, the data has "
            f"{vocabulary_size:,}: name its tokenizer, data.tokenizer={folder.folder / TOKENIZER}"
        )
    if text.width != config.text_encoder.width:
        raise ConfigurationError(
            f"{_KEY}={config.clip} has codes of length {text.width}: set "
            f"system.text_encoder.width={text.width}"
        )
    _load(folder, {"text_encoder": (text, "text"), _VISION: (vision, "vision")})
    return text, vision


def _halves(folder: PretrainedFolder) -> tuple[CLIPTextEncoder, CLIPVision]:
    described: dict[str, Any] = folder.config
    width = int(described["projection_dim"])
    tokens = special_tokens(folder.folder / TOKENIZER)
    text = CLIPTextEncoder(described["text_config"], width, *tokens)
    return text, CLIPVision(described["vision_config"], width)


def _load(folder: PretrainedFolder, halves: dict[str, tuple[nn.Module, str]]) -> None:
    """Load the halves that no checkpoint gives, by their names in the system."""
    wanted = [half for name, half in halves.items() if reads_initial_weights(name)]
    tensors = folder.tensors() if wanted else {}
    for module, half in wanted:
        try:
            module.load_state_dict(own_names(tensors, half))
        except RuntimeError as error:
            raise folder.unfit() from error


def _check_text_settings(config: CLIPGANConfig) -> None:
    text = config.text_encoder
    given = {
        "text_encoder.name": text.name != "clip",
        "text_encoder.weights": bool(text.weights),
        "text_encoder.training": text.training != "frozen",
        "text_encoder.clip": text.clip is not None,
        "text_encoder.bert.pretrained": bool(text.bert.pretrained),
    }
    refuse_settings(
        given, "has no effect on clip_gan, whose text encoder is the frozen CLIP: leave it out"
    )


def _check_blocks(config: CLIPGANConfig, count: int) -> None:
    """Refuse blocks that a CLIP of `count` blocks has not."""
    levels = config.levels
    if len(levels) < 2 or levels != sorted({*levels}) or not 0 <= levels[0] <= levels[-1] < count:
        raise ConfigurationError(
            f"system.levels={levels} must be two or more rising numbers of CLIP's blocks, 0 to "
            f"{count - 1}"
        )
    if config.prompts > count - 1:
        raise ConfigurationError(
            f"system.prompts={config.prompts}: CLIP has {count} blocks, and the first gets none, "
            f"so give at most {count - 1}"
        )
