"""Networks of a GAN that draws in stages, from its configuration, and what does not go together.

GANs that draw in stages: AttnGAN, DM-GAN and their hybrids, whose stages are a list.

The phases of a step, in the order of the released code:

1. ``discriminator64``, ``discriminator128``, …: for each size of image, cross-entropies of real,
   mismatched and fake pairs, and of real and fake images alone;
2. ``generator``: what all discriminators say of the fake images, the divergence of the
   condition, and DAMSM of the largest images.

The generator runs once a step; its graph serves the last phase, its detached images the others.
The text encoder is frozen. The numbers that a condition is drawn by come with the noise, so that
a step is the same on any number of ranks.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from t2i_hpc.common.errors import ConfigurationError
from t2i_hpc.config.systems import StagedGANConfig
from t2i_hpc.data.batches import Batch
from t2i_hpc.losses.adversarial import (
    entropy_fake,
    entropy_mismatch,
    entropy_real,
    gaussian_divergence,
    mismatched,
    wrong_pairs,
)
from t2i_hpc.models.image_encoder import ImageEncoder
from t2i_hpc.models.outputs import GeneratedImages
from t2i_hpc.models.stage_blocks import initialize
from t2i_hpc.models.staged_discriminator import StagedDiscriminator
from t2i_hpc.models.staged_generator import SinglePictureGenerator, StagedGenerator, StagedPictures
from t2i_hpc.models.text_encoder import TextEncoder, TextFeatures
from t2i_hpc.systems.base import EMA, Losses, OptimizerSettings, Phase, Term, refuse_settings
from t2i_hpc.systems.encoders import (
    as_terms,
    build_images_encoder,
    build_text_encoder,
    damsm_terms,
    frozen,
    scale_images,
)


def build_generator(config: StagedGANConfig) -> StagedGenerator:
    """Build the generator that `config` describes, with its first weights.

    Raises:
        ConfigurationError: stages in another order, or more than the resolution has sizes for.
    """
    kind = SinglePictureGenerator if config.pictures == "last" else StagedGenerator
    try:
        generator = kind(
            config.stages,
            config.resolution,
            width=config.generator_width,
            noise_width=config.noise_width,
            sentence_width=config.text_encoder.width,
            condition_width=config.condition_width,
            residuals=config.residuals,
            reference_mask=config.reference_mask,
        )
    except ValueError as error:
        shown = ",".join(config.stages)
        raise ConfigurationError(f"system.stages=[{shown}]: {error}") from error
    initialize(generator)
    return generator


def build_discriminators(
    config: StagedGANConfig, generator: StagedGenerator
) -> dict[int, StagedDiscriminator]:
    """Build a discriminator for each size of image that the generator draws, by that size."""
    sides = [generator.resolutions[int(stage)] for stage in generator.to_rgb]
    found = {
        side: StagedDiscriminator(
            side,
            config.discriminator_width,
            config.text_encoder.width,
            norm=config.discriminator_norm,
            unconditional=config.unconditional,
        )
        for side in sides
    }
    for discriminator in found.values():
        initialize(discriminator)
    return found


def check_encoder(config: StagedGANConfig) -> None:
    """Refuse settings of encoders that are trained: here they are frozen.

    Raises:
        ConfigurationError: such a setting is given.
    """
    given = {
        "text_encoder.training": config.text_encoder.training != "frozen",
        "text_encoder.clip": config.text_encoder.clip is not None,
        "image_encoder.batch_statistics": config.image_encoder.batch_statistics,
    }
    refuse_settings(
        given,
        f"has no effect on {config.name}, whose encoders are frozen: leave it out, or take "
        "system=ssa_gan, which trains them",
    )


@dataclass(frozen=True)
class StagedStep:
    """What the phases of one step share.

    Attributes:
        batch: this rank's samples.
        real: images in [-1, 1] by their side.
        text: caption features, without graph.
        drawn: generated images by their side and the rest, with the generator's graph.
        fake: the images of `drawn` by their side.
    """

    batch: Batch
    real: Mapping[int, Tensor]
    text: TextFeatures
    drawn: StagedPictures
    fake: Mapping[int, Tensor]


class StagedGAN:
    """The systems ``attn_gan``, ``dm_gan``, ``attndm_gan`` and ``dmattn_gan``."""

    def __init__(self, config: StagedGANConfig, vocabulary_size: int) -> None:
        check_encoder(config)
        self.config = config
        self.noise_width = config.noise_width + config.condition_width
        self.resolution = config.resolution
        self.generator: StagedGenerator = build_generator(config)
        self.discriminators: Mapping[int, StagedDiscriminator] = build_discriminators(
            config, self.generator
        )
        self.text_encoder: TextEncoder = build_text_encoder(
            config.text_encoder, vocabulary_size
        ).requires_grad_(False)
        self.image_encoder: ImageEncoder | None = None
        if config.damsm.weight > 0:
            self.image_encoder = build_images_encoder(
                config.image_encoder, config.text_encoder.width
            ).requires_grad_(False)
        self.emas: Sequence[EMA] = self._emas()
        self.trainable: Mapping[str, nn.Module] = self._trainable()
        self.modules = nn.ModuleDict(self._networks())
        self.optimizers: Mapping[str, OptimizerSettings] = self._optimizers()
        self.phases: Sequence[Phase] = self._phases()

    def begin(self, batch: Batch, noise: Tensor) -> StagedStep:
        """Encode the captions and draw the fake images of a step."""
        for name, network in self.modules.items():
            network.train(name in self.trainable)
        text = self._read(batch.tokens, batch.lengths)
        drawn = self._draw(self.generator, text, batch.tokens, batch.lengths, noise)
        fake = dict(zip(self.discriminators, drawn.images, strict=True))
        images = scale_images(batch.images)
        real = {side: shrunk(images, side) for side in self.discriminators}
        return StagedStep(batch, real, text, drawn, fake)

    @torch.no_grad()
    def generate(self, tokens: Tensor, lengths: Tensor, noise: Tensor) -> GeneratedImages:
        """Draw the pictures of all stages and their attention, with the average if kept."""
        self.modules.eval()
        generator = self.emas[0].target if self.emas else self.generator
        return self._draw(generator, self._read(tokens, lengths), tokens, lengths, noise)

    def _draw(
        self,
        generator: nn.Module,
        text: TextFeatures,
        tokens: Tensor,
        lengths: Tensor,
        noise: Tensor,
    ) -> StagedPictures:
        """Draw from noise (B, noise_width), whose last numbers decide the condition."""
        latent, chance = noise.split([self.config.noise_width, self.config.condition_width], 1)
        sampled = generator.training or self.config.sample_condition
        hidden = padding_mask(tokens, lengths)
        pictures: StagedPictures = generator(
            latent, text.sentence, text.words, hidden, chance if sampled else None
        )
        return pictures

    @torch.no_grad()
    def _read(self, tokens: Tensor, lengths: Tensor) -> TextFeatures:
        text: TextFeatures = self.text_encoder(tokens, lengths)
        return text

    def discriminator_losses(self, side: int, step: StagedStep) -> Losses:
        """Cross-entropies of pairs and, where there is a head for them, of images alone."""
        network, sentence = self.discriminators[side], step.text.sentence
        # Entered apart: batch norms must not mix real and fake images.
        real, fake = network.features(step.real[side]), network.features(step.fake[side].detach())
        matching, drawn = network.judge(real, sentence), network.judge(fake, sentence)
        pairs = wrong_pairs(len(real), self.config.mismatch)
        wrong = network.judge(real[:pairs], mismatched(sentence)[:pairs])
        high, low = (1 / 2, 1 / 3) if self.config.unconditional else (1.0, 1 / 2)
        losses = {
            "real": Term(entropy_real(matching), high),
            "fake": Term(entropy_fake(drawn), low),
            "mismatch": Term(entropy_mismatch(wrong, len(real), self.config.mismatch), low),
        }
        real_alone, fake_alone = network.judge_alone(real), network.judge_alone(fake)
        if real_alone is not None and fake_alone is not None:
            losses["real_alone"] = Term(entropy_real(real_alone), high)
            losses["fake_alone"] = Term(entropy_fake(fake_alone), low)
        return losses

    def generator_losses(self, step: StagedStep) -> Losses:
        """What the discriminators say of the fake images, divergence and DAMSM."""
        losses: dict[str, Term] = {}
        for side, network in self.discriminators.items():
            with frozen(network):
                matching, alone = network(step.fake[side], step.text.sentence)
            losses[f"adversarial{side}"] = Term(entropy_real(matching))
            if alone is not None:
                losses[f"adversarial{side}_alone"] = Term(entropy_real(alone))
        return {**losses, **self._divergence(step), **self._damsm(step)}

    def _divergence(self, step: StagedStep) -> Losses:
        condition = step.drawn.condition
        value = gaussian_divergence(condition.mean, condition.log_variance)
        return {"divergence": Term(value, self.config.divergence_weight)}

    def _damsm(self, step: StagedStep) -> Losses:
        if self.image_encoder is None:
            return {}
        image, config = step.drawn.images[-1], self.config.damsm
        terms = damsm_terms(image, self.image_encoder, step.text, step.batch, config)
        return as_terms(terms, "damsm_", config.weight)

    def _emas(self) -> list[EMA]:
        if not self.config.ema_images:
            return []
        average = copy.deepcopy(self.generator).requires_grad_(False)
        half_life, ramp = self.config.ema_images, self.config.ema_ramp
        return [EMA(self.generator, average, half_life, ramp)]

    def _trainable(self) -> dict[str, nn.Module]:
        named = {f"discriminator{side}": part for side, part in self.discriminators.items()}
        return {"generator": self.generator, **named}

    def _networks(self) -> dict[str, nn.Module]:
        networks = {**self.trainable, "text_encoder": self.text_encoder}
        if self.image_encoder is not None:
            networks["image_encoder"] = self.image_encoder
        if self.emas:
            networks["generator_ema"] = self.emas[0].target
        return networks

    def _optimizers(self) -> dict[str, OptimizerSettings]:
        config = self.config.optimizer
        betas = (config.beta1, config.beta2)
        rates = dict.fromkeys(self.trainable, config.discriminator_learning_rate)
        rates["generator"] = config.generator_learning_rate
        return {name: OptimizerSettings(rate, betas) for name, rate in rates.items()}

    def _phases(self) -> list[Phase]:
        named = {side: f"discriminator{side}" for side in self.discriminators}
        phases = [
            Phase(name, (name,), partial(self.discriminator_losses, side))
            for side, name in named.items()
        ]
        return [*phases, Phase("generator", ("generator",), self.generator_losses)]


def padding_mask(tokens: Tensor, lengths: Tensor) -> Tensor:
    """Return bool (B, T), True where a caption has no word."""
    return torch.arange(tokens.shape[1], device=tokens.device) >= lengths[:, None]


def shrunk(images: Tensor, side: int) -> Tensor:
    """Return images (B, 3, R, R) at `side` pixels, smoothed as Pillow's bilinear filter does."""
    if images.shape[-1] == side:
        return images
    return F.interpolate(images, (side, side), mode="bilinear", antialias=True)
