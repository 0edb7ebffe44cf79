"""SSA-GAN (Hu et al., CVPR 2022): one generator, one discriminator, a text encoder.

The phases of a step, in the order of the released code:

1. ``discriminator``: hinge loss of real, mismatched and fake pairs;
2. ``penalty``: matching-aware gradient penalty at the discriminator just updated;
3. ``encoders``: DAMSM on real images, where the text encoder is trained as the code does;
4. ``generator``: adversarial loss and DAMSM of the fake images.

The generator runs once a step; its graph serves phase 4, its detached images phase 1. With
``text_encoder.training=joint`` (as the paper says) phase 4 updates the text encoder as well.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from t2i_hpc.common.errors import ConfigurationError
from t2i_hpc.common.step import Batch, Losses, OptimiserSettings, Phase, Pictures, Term
from t2i_hpc.config.system import SSAGANConfig
from t2i_hpc.losses.adversarial import hinge_fake, hinge_mismatch, hinge_real, mismatched
from t2i_hpc.losses.gradient_penalty import matching_aware_gradient_penalty
from t2i_hpc.models.discriminator import MatchingDiscriminator
from t2i_hpc.models.image_encoder import ImageEncoder
from t2i_hpc.models.ssa_generator import SSAGenerator
from t2i_hpc.models.text_encoder import LSTMTextEncoder, TextFeatures
from t2i_hpc.systems.encoders import (
    as_terms,
    build_images_encoder,
    build_text_encoder,
    damsm_terms,
    frozen,
    scale_images,
)


@dataclass(frozen=True)
class SSAGANStep:
    """What the phases of one step share.

    Attributes:
        batch: this rank's samples.
        real: images (B, 3, R, R) in [-1, 1].
        text: caption features with the text encoder's graph where it is trained.
        sentence: the sentences without graph.
        fake: generated images with the generator's graph.
    """

    batch: Batch
    real: Tensor
    text: TextFeatures
    sentence: Tensor
    fake: Tensor


class SSAGAN:
    """The system ``ssa_gan``; see the module's text."""

    def __init__(self, config: SSAGANConfig, vocabulary_size: int) -> None:
        self.config = config
        self.noise_width = config.noise_width
        self.resolution = config.resolution
        self.generator = _build_generator(config)
        self.discriminator = MatchingDiscriminator(
            config.resolution, config.discriminator_width, config.text_encoder.width
        )
        self.text_encoder: LSTMTextEncoder = build_text_encoder(
            config.text_encoder, vocabulary_size
        )
        self.image_encoder: ImageEncoder | None = None
        if self._needs_image_encoder():
            self.image_encoder = build_images_encoder(
                config.image_encoder, config.text_encoder.width
            )
        self.modules = nn.ModuleDict(self._networks())
        self.parts: Mapping[str, nn.Module] = self._parts()
        self.optimisers: Mapping[str, OptimiserSettings] = self._optimisers()
        self.phases: Sequence[Phase] = self._phases()
        if self.config.text_encoder.training == "frozen":
            self.text_encoder.requires_grad_(False)

    def begin(self, batch: Batch, noise: Tensor) -> SSAGANStep:
        """Encode the captions and draw the fake images of a step."""
        self.modules.train()
        trained = self.config.text_encoder.training != "frozen"
        self.text_encoder.train(trained)
        with torch.set_grad_enabled(trained):
            text: TextFeatures = self.text_encoder(batch.tokens, batch.lengths)
        sentence = text.sentence.detach()
        steering = text.sentence if self.config.text_encoder.training == "joint" else sentence
        fake = self.generator(noise, steering).images[-1]
        return SSAGANStep(batch, scale_images(batch.images), text, sentence, fake)

    @torch.no_grad()
    def draw(self, tokens: Tensor, lengths: Tensor, noise: Tensor) -> Pictures:
        """Draw pictures (B, 3, R, R) and masks in evaluation mode."""
        self.modules.eval()
        pictures: Pictures = self.generator(noise, self.text_encoder(tokens, lengths).sentence)
        return pictures

    def discriminator_losses(self, step: SSAGANStep) -> Losses:
        """Hinge losses: real pairs, real images with wrong captions, fake images."""
        images = torch.cat([step.real, step.fake.detach()])
        real, fake = self.discriminator.features(images).chunk(2)
        judge = self.discriminator.judge
        wrong = mismatched(step.sentence)
        mode = self.config.mismatch
        return {
            "real": Term(hinge_real(judge(real, step.sentence))),
            "mismatch": Term(hinge_mismatch(judge(real, wrong), mode), 0.5),
            "fake": Term(hinge_fake(judge(fake, step.sentence)), 0.5),
        }

    def penalty_losses(self, step: SSAGANStep) -> Losses:
        """Matching-aware gradient penalty at real, matching pairs."""
        penalty = matching_aware_gradient_penalty(
            self.discriminator, step.real, step.sentence, self.config.penalty_power
        )
        return {"gradient": Term(penalty, self.config.penalty_weight)}

    def encoder_losses(self, step: SSAGANStep) -> Losses:
        """DAMSM of real images and their captions, weight 1."""
        return as_terms(self._damsm(step.real, step.text, step.batch), "real_", 1.0)

    def generator_losses(self, step: SSAGANStep) -> Losses:
        """Adversarial loss and DAMSM of the fake images; with ``joint`` DAMSM of real ones too."""
        with frozen(self.discriminator):
            logits = self.discriminator(step.fake, step.sentence)
        losses: dict[str, Term] = {"adversarial": Term(-logits.mean())}
        joint = self.config.text_encoder.training == "joint"
        if self.config.damsm.weight > 0:
            text = step.text if joint else TextFeatures(*(t.detach() for t in step.text))
            losses |= as_terms(self._damsm_of_fakes(step, text), "damsm_", self.config.damsm.weight)
        return {**losses, **self.encoder_losses(step)} if joint else losses

    def _damsm_of_fakes(self, step: SSAGANStep, text: TextFeatures) -> dict[str, Tensor]:
        if self.image_encoder is None:
            return {}
        with frozen(self.image_encoder):
            return self._damsm(step.fake, text, step.batch)

    def _damsm(self, images: Tensor, text: TextFeatures, batch: Batch) -> dict[str, Tensor]:
        if self.image_encoder is None:
            return {}
        return damsm_terms(images, self.image_encoder, text, batch, self.config.damsm)

    def _needs_image_encoder(self) -> bool:
        return self.config.damsm.weight > 0 or self.config.text_encoder.training != "frozen"

    def _networks(self) -> dict[str, nn.Module]:
        networks: dict[str, nn.Module] = {
            "generator": self.generator,
            "discriminator": self.discriminator,
            "text_encoder": self.text_encoder,
        }
        if self.image_encoder is not None:
            networks["image_encoder"] = self.image_encoder
        return networks

    def _parts(self) -> dict[str, nn.Module]:
        parts: dict[str, nn.Module] = {
            "generator": self.generator,
            "discriminator": self.discriminator,
        }
        if self.config.text_encoder.training != "frozen" and self.image_encoder is not None:
            parts["encoders"] = nn.ModuleDict(
                {"text": self.text_encoder, "image_heads": self.image_encoder.heads}
            )
        return parts

    def _optimisers(self) -> dict[str, OptimiserSettings]:
        config = self.config.optimiser
        rates = {
            "generator": config.generator_learning_rate,
            "discriminator": config.discriminator_learning_rate,
            "encoders": self.config.text_encoder.learning_rate,
        }
        betas = (config.beta1, config.beta2)
        return {name: OptimiserSettings(rates[name], betas) for name in self.parts}

    def _phases(self) -> list[Phase]:
        training = self.config.text_encoder.training
        phases = [Phase("discriminator", ("discriminator",), self.discriminator_losses)]
        if self.config.penalty_weight > 0:
            phases.append(Phase("penalty", ("discriminator",), self.penalty_losses))
        if training == "damsm":
            phases.append(Phase("encoders", ("encoders",), self.encoder_losses))
        updated = ("generator", "encoders") if training == "joint" else ("generator",)
        return [*phases, Phase("generator", updated, self.generator_losses)]


def _build_generator(config: SSAGANConfig) -> SSAGenerator:
    try:
        return SSAGenerator(
            config.resolution,
            width=config.generator_width,
            noise_width=config.noise_width,
            sentence_width=config.text_encoder.width,
            blocks=config.blocks,
            masks=config.masks,
            mask_width=config.mask_width,
        )
    except ValueError as error:
        raise ConfigurationError(f"system.blocks or system.masks: {error}") from error
