"""GANs that generate in stages: AttnGAN, DM-GAN and their hybrids, whose stages are a list.

The phases of a step, in the order of the released code:

1. ``discriminator64``, ``discriminator128``, …: for each size of image, cross-entropies of real,
   mismatched and fake pairs, and of real and fake images alone;
2. ``generator``: adversarial losses by all discriminators, the divergence of the condition, and
   DAMSM of the largest images.

The generator runs once a step; its graph serves the last phase, its detached images the others.
The text encoder is frozen. The numbers that a condition is drawn by come with the noise, so that
a step is the same on any number of ranks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from t2i_hpc.common.errors import ConfigurationError
from t2i_hpc.common.transfer import to_device
from t2i_hpc.config.staged_settings import StagedGANConfig
from t2i_hpc.data.batches import Batch
from t2i_hpc.losses.adversarial import (
    entropy_fake,
    entropy_mismatch,
    entropy_real,
    gaussian_divergence,
    mismatched,
    wrong_pairs,
)
from t2i_hpc.models.recomputation import statistics_kept
from t2i_hpc.models.staged_discriminator import StagedDiscriminator
from t2i_hpc.models.staged_generator import (
    Condition,
    SingleImageGenerator,
    StagedGenerator,
    StagedImages,
    initialize,
)
from t2i_hpc.models.text_encoder import TextFeatures
from t2i_hpc.systems.augmented import build_augmentation, kept
from t2i_hpc.systems.base import GAN, Losses, Phase, Term, refuse_settings
from t2i_hpc.systems.encoders import (
    as_terms,
    build_images_encoder,
    build_text_encoder,
    damsm_terms,
    frozen,
    reads_initial_weights,
    scale_images,
)


def build_generator(config: StagedGANConfig) -> StagedGenerator:
    """Build the generator that `config` describes, with its first weights.

    Raises:
        ConfigurationError: stages in another order, or more than the resolution has sizes for.
    """
    kind = SingleImageGenerator if config.pictures == "last" else StagedGenerator
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
    if reads_initial_weights():  # orthogonal matrices take long, and a checkpoint overwrites them
        initialize(generator)
    return generator


def build_discriminators(
    config: StagedGANConfig, generator: StagedGenerator
) -> dict[int, StagedDiscriminator]:
    """Build a discriminator for each size of image that the generator makes, by that size."""
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
    for discriminator in found.values() if reads_initial_weights() else ():
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
        noise: (B, noise_width).
        condition: what the images were drawn from, with the generator's graph.
        fake: generated images by their side, with the generator's graph; see :class:`Phase`,
            `redraw`.
    """

    batch: Batch
    real: Mapping[int, Tensor]
    text: TextFeatures
    noise: Tensor
    condition: Condition
    fake: Mapping[int, Tensor]


class StagedGAN(GAN):
    """The systems ``attn_gan``, ``dm_gan``, ``attndm_gan`` and ``dmattn_gan``."""

    config: StagedGANConfig
    generator: StagedGenerator

    def __init__(self, config: StagedGANConfig, vocabulary_size: int) -> None:
        check_encoder(config)
        generator = build_generator(config)
        self.discriminators = build_discriminators(config, generator)
        self.augmentation = build_augmentation(config)
        text, image, width = config.text_encoder, config.image_encoder, config.text_encoder.width
        super().__init__(
            config,
            generator,
            {f"discriminator{side}": network for side, network in self.discriminators.items()},
            build_text_encoder(text, vocabulary_size),
            build_images_encoder(image, width) if config.damsm.weight > 0 else None,
            frozen=kept(self.augmentation),
        )
        self.noise_width = config.noise_width + config.condition_width
        self.phases = self._phases()

    def _phases(self) -> list[Phase]:
        phases = []
        for side in self.discriminators:
            name, losses = f"discriminator{side}", partial(self.discriminator_losses, side)
            phases.append(Phase(name, (name,), losses))
        return [*phases, Phase("generator", ("generator",), self.generator_losses, self.redraw)]

    def begin(self, batch: Batch, noise: Tensor) -> StagedStep:
        """Encode the captions and generate the fake images of a step."""
        self.set_modes()
        self.augmentation.begin_step()
        with torch.no_grad():
            text: TextFeatures = self.text_encoder(batch.tokens, batch.lengths)
        condition, fake = self._fakes(batch, text, noise)
        images = scale_images(batch.images)
        real = {side: shrunk(images, side) for side in self.discriminators}
        return StagedStep(batch, real, text, noise, condition, fake)

    def redraw(self, step: StagedStep) -> StagedStep:
        """Generate the same images with graph; running statistics stay."""
        with statistics_kept(self.generator):
            condition, fake = self._fakes(step.batch, step.text, step.noise)
        return replace(step, condition=condition, fake=fake)

    def _fakes(
        self, batch: Batch, text: TextFeatures, noise: Tensor
    ) -> tuple[Condition, dict[int, Tensor]]:
        generated = self.synthesize(self.generator, text, batch.lengths, noise)
        return generated.condition, dict(zip(self.discriminators, generated.images, strict=True))

    def synthesize(
        self, generator: nn.Module, text: TextFeatures, lengths: Tensor, noise: Tensor
    ) -> StagedImages:
        """Run the generator, or its EMA; the last numbers of the noise draw the condition."""
        latent, chance = noise.split([self.config.noise_width, self.config.condition_width], 1)
        sampled = generator.training or self.config.sample_condition
        lengths = to_device(lengths, text.words.device)
        padding = torch.arange(text.words.shape[2], device=lengths.device) >= lengths[:, None]
        images: StagedImages = generator(
            latent, text.sentence, text.words, padding, chance if sampled else None
        )
        return images

    def seen(self, images: Tensor, step: StagedStep) -> Tensor:
        """Return images (B, 3, R, R) as their discriminator sees them: real and fake, all sizes."""
        changed: Tensor = self.augmentation(images, step.noise)
        return changed

    def discriminator_losses(self, side: int, step: StagedStep) -> Losses:
        """Cross-entropies of pairs and, where there is a head for them, of images alone."""
        network, sentence = self.discriminators[side], step.text.sentence
        # Entered apart: batch norms must not mix real and fake images.
        real, fake = (
            network.features(self.seen(images, step))
            for images in (step.real[side], step.fake[side].detach())
        )
        matching, generated = network.logits(real, sentence), network.logits(fake, sentence)
        pairs = wrong_pairs(len(real), self.config.mismatch)
        wrong = network.logits(real[:pairs], mismatched(sentence)[:pairs])
        high, low = (1 / 2, 1 / 3) if self.config.unconditional else (1.0, 1 / 2)
        losses = {
            "real": Term(entropy_real(matching), high),
            "fake": Term(entropy_fake(generated), low),
            "mismatch": Term(entropy_mismatch(wrong, len(real), self.config.mismatch), low),
        }
        real_alone = network.unconditional_logits(real)
        fake_alone = network.unconditional_logits(fake)
        if real_alone is not None and fake_alone is not None:
            losses["real_alone"] = Term(entropy_real(real_alone), high)
            losses["fake_alone"] = Term(entropy_fake(fake_alone), low)
        # Adapted by the largest images, which are the first to be learned by heart.
        followed = self.augmentation.followed(matching) if side == self.resolution else {}
        return losses | {name: Term(value, 0.0) for name, value in followed.items()}

    def generator_losses(self, step: StagedStep) -> Losses:
        """Adversarial losses of the fake images, divergence of the condition, and DAMSM."""
        losses: dict[str, Term] = {}
        for side, network in self.discriminators.items():
            with frozen(network):
                matching, alone = network(self.seen(step.fake[side], step), step.text.sentence)
            losses[f"adversarial{side}"] = Term(entropy_real(matching))
            if alone is not None:
                losses[f"adversarial{side}_alone"] = Term(entropy_real(alone))
        return {**losses, **self._divergence(step), **self._damsm(step)}

    def _divergence(self, step: StagedStep) -> Losses:
        condition = step.condition
        value = gaussian_divergence(condition.mean, condition.log_variance)
        return {"divergence": Term(value, self.config.divergence_weight)}

    def _damsm(self, step: StagedStep) -> Losses:
        if self.image_encoder is None:
            return {}
        image, config = step.fake[self.resolution], self.config.damsm
        terms = damsm_terms(image, self.image_encoder, step.text, step.batch, config)
        return as_terms(terms, "damsm_", config.weight)


def shrunk(images: Tensor, side: int) -> Tensor:
    """Return images (B, 3, R, R) at `side` pixels, smoothed as Pillow's bilinear filter does."""
    if images.shape[-1] == side:
        return images
    return F.interpolate(images, (side, side), mode="bilinear", antialias=True)
