"""SSA-GAN (Hu et al., CVPR 2022): one generator, one discriminator, a text encoder.

The phases of a step, in the order of the released code:

1. ``discriminator``: hinge loss of real, mismatched and fake pairs;
2. ``penalty``: matching-aware gradient penalty (MA-GP) at the discriminator just updated;
3. ``encoders``: DAMSM on real images, where the text encoder is trained as the code does;
4. ``generator``: adversarial loss and DAMSM of the fake images.

With ``discriminator_schedule=merged`` (as the paper's Eq. 6 and DF-GAN's later code) 1 and 2 are
one phase, which shares the forward of the real pairs.

The generator runs once a step; its graph serves phase 4, its detached images phase 1. With
``text_encoder.training=joint`` (as the paper says) phase 4 updates the text encoder as well.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from t2i_hpc.common.errors import ConfigurationError
from t2i_hpc.config.systems import SSAGANConfig
from t2i_hpc.data.batches import Batch
from t2i_hpc.losses.adversarial import (
    hinge_fake,
    hinge_generator,
    hinge_mismatch,
    hinge_real,
    mismatched,
)
from t2i_hpc.losses.gradient_penalty import PenalizedPairs
from t2i_hpc.models.df_generator import EarlyDFGenerator
from t2i_hpc.models.discriminator import MatchingDiscriminator
from t2i_hpc.models.recomputation import statistics_kept
from t2i_hpc.models.ssa_generator import SSAGenerator
from t2i_hpc.models.text_encoder import TextFeatures
from t2i_hpc.systems.base import GAN, Losses, Phase, Term, refuse_settings
from t2i_hpc.systems.encoders import (
    as_terms,
    build_images_encoder,
    build_text_encoder,
    damsm_terms,
    frozen,
    scale_images,
)
from t2i_hpc.systems.penalties import Penalty


def build_generator(config: SSAGANConfig) -> SSAGenerator | EarlyDFGenerator:
    """Build the generator that `config` describes.

    Raises:
        ConfigurationError: settings that do not fit together.
    """
    if config.block == "affine":
        return _build_affine_generator(config)
    try:
        return SSAGenerator(
            config.resolution,
            width=config.generator_width,
            noise_width=config.noise_width,
            sentence_width=config.text_encoder.width,
            blocks=config.blocks,
            masks=config.masks,
            mask_width=config.mask_width,
            mask_source=config.mask_source,
            modulation=config.modulation,
        )
    except ValueError as error:
        raise ConfigurationError(f"system.blocks or system.masks: {error}") from error


def _build_affine_generator(config: SSAGANConfig) -> EarlyDFGenerator:
    """Build the generator without SSACN blocks: DF-GAN's first version.

    Raises:
        ConfigurationError: a setting of the SSACN blocks, which are not there.
    """
    given = {"blocks": config.blocks is not None, "masks": bool(config.masks)}
    given |= {
        "mask_source": config.mask_source != "code",
        "modulation": config.modulation != "code",
    }
    refuse_settings(given, "belongs to system.block=ssacn: leave it out with system.block=affine")
    return EarlyDFGenerator(
        config.resolution,
        width=config.generator_width,
        noise_width=config.noise_width,
        sentence_width=config.text_encoder.width,
    )


def check_encoders(config: SSAGANConfig) -> None:
    """Refuse settings of trained encoders where they are frozen.

    Raises:
        ConfigurationError: such a setting is given.
    """
    if config.text_encoder.training != "frozen":
        return
    given = {
        "text_encoder.clip": config.text_encoder.clip is not None,
        "image_encoder.batch_statistics": config.image_encoder.batch_statistics,
    }
    refuse_settings(
        given, "has no effect on frozen encoders: take system.text_encoder.training=damsm or joint"
    )


@dataclass(frozen=True)
class SSAGANStep:
    """What the phases of one step share.

    Attributes:
        batch: this rank's samples.
        real: images (B, 3, R, R) in [-1, 1].
        text: caption features with the text encoder's graph where it is trained.
        sentence: the sentences without graph.
        noise: (B, noise_width).
        fake: generated images with the generator's graph; see :class:`Phase`, `redraw`.
    """

    batch: Batch
    real: Tensor
    text: TextFeatures
    sentence: Tensor
    noise: Tensor
    fake: Tensor


class SSAGAN(GAN):
    """The system ``ssa_gan``; see the module's text."""

    config: SSAGANConfig
    generator: SSAGenerator | EarlyDFGenerator

    def __init__(self, config: SSAGANConfig, vocabulary_size: int) -> None:
        check_encoders(config)
        self.penalty = Penalty(config, config.penalty_norm)
        width, encoder = config.text_encoder.width, config.image_encoder
        needs_damsm = config.damsm.weight > 0 or config.text_encoder.training != "frozen"
        generator = build_generator(config)
        self.discriminator = MatchingDiscriminator(
            config.resolution, config.discriminator_width, width
        )
        super().__init__(
            config,
            generator,
            {"discriminator": self.discriminator},
            build_text_encoder(config.text_encoder, vocabulary_size),
            build_images_encoder(encoder, width) if needs_damsm else None,
        )
        self.phases = self._phases()

    def _phases(self) -> list[Phase]:
        training = self.config.text_encoder.training
        encoders = ("text_encoder", "image_heads")
        phases = self._discriminator_phases()
        if training == "damsm":
            phases.append(Phase("encoders", encoders, self.encoder_losses))
        updated = ("generator", *encoders) if training == "joint" else ("generator",)
        return [*phases, Phase("generator", updated, self.generator_losses, self.redraw)]

    def _discriminator_phases(self) -> list[Phase]:
        if self.config.discriminator_schedule == "merged":
            return [
                self.penalty.phase("discriminator", self.merged_losses, self.discriminator_losses)
            ]
        hinge = Phase("discriminator", ("discriminator",), self.discriminator_losses)
        if not self.penalty.active:
            return [hinge]
        return [hinge, self.penalty.phase("penalty", self.penalty_losses)]

    def begin(self, batch: Batch, noise: Tensor) -> SSAGANStep:
        """Encode the captions and generate the fake images of a step."""
        self.set_modes()
        with torch.set_grad_enabled(self.trains_encoders):
            text: TextFeatures = self.text_encoder(batch.tokens, batch.lengths)
        fake, real = self._fakes(noise, text), scale_images(batch.images)
        return SSAGANStep(batch, real, text, text.sentence.detach(), noise, fake)

    def redraw(self, step: SSAGANStep) -> SSAGANStep:
        """Generate the same images with graph; running statistics stay."""
        with statistics_kept(self.generator):
            return replace(step, fake=self._fakes(step.noise, step.text))

    def _fakes(self, noise: Tensor, text: TextFeatures) -> Tensor:
        joint = self.config.text_encoder.training == "joint"
        condition = text.sentence if joint else text.sentence.detach()
        images: Tensor = self.generator(noise, condition).images[-1]
        return images

    def discriminator_losses(self, step: SSAGANStep) -> Losses:
        """Hinge losses: real pairs, real images with wrong captions, fake images."""
        images = torch.cat([step.real, step.fake.detach()])
        real, fake = self.discriminator.features(images).chunk(2)
        return self._hinge(step, self.discriminator.logits(real, step.sentence), real, fake)

    def merged_losses(self, step: SSAGANStep) -> Losses:
        """Hinge losses and the penalty from one forward of the real pairs."""
        penalty, real, matching = self._penalty(step)
        # Not joined with the real images, or the penalty would differentiate these as well.
        fake = self.discriminator.features(step.fake.detach())
        hinge = self._hinge(step, matching, real, fake)
        return {**hinge, "gradient": self.penalty.term(penalty)}

    def penalty_losses(self, step: SSAGANStep) -> Losses:
        """Penalty at real, matching pairs."""
        return {"gradient": self.penalty.term(self._penalty(step).penalty)}

    def _penalty(self, step: SSAGANStep) -> PenalizedPairs:
        return self.penalty.pairs(self.discriminator, step.real, step.sentence, step.noise)

    def _hinge(self, step: SSAGANStep, matching: Tensor, real: Tensor, fake: Tensor) -> Losses:
        """Hinge losses of matching logits (B,) and of features of real and fake images."""
        logits = self.discriminator.logits
        wrong = logits(real, mismatched(step.sentence))
        return {
            "real": Term(hinge_real(matching)),
            "mismatch": Term(hinge_mismatch(wrong, self.config.mismatch), 0.5),
            "fake": Term(hinge_fake(logits(fake, step.sentence)), 0.5),
        }

    def encoder_losses(self, step: SSAGANStep) -> Losses:
        """DAMSM of real images and their captions, weight 1."""
        return as_terms(self._damsm(step.real, step.text, step.batch), "real_", 1.0)

    def generator_losses(self, step: SSAGANStep) -> Losses:
        """Adversarial loss and DAMSM of the fake images; with ``joint`` DAMSM of real ones too."""
        with frozen(self.discriminator):
            logits = self.discriminator(step.fake, step.sentence)
        losses: dict[str, Term] = {"adversarial": Term(hinge_generator(logits))}
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
