"""DF-GAN as of CVPR 2022 (Tao et al.): noise and sentence steer every layer of the generator.

Two phases: ``discriminator``, with hinge losses and the matching-aware gradient penalty of one
forward of the real pairs in one update, and ``generator``. There is no DAMSM on generated images.
DF-GAN's first version, which updates its discriminator twice, is ``ssa_gan`` with
``block=affine``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from t2i_hpc.config.systems import DFGANConfig
from t2i_hpc.data.batches import Batch
from t2i_hpc.losses.adversarial import (
    hinge_fake,
    hinge_generator,
    hinge_mismatch,
    hinge_real,
    mismatched,
)
from t2i_hpc.models import GeneratedImages
from t2i_hpc.models.df_generator import DFGenerator
from t2i_hpc.models.discriminator import DFDiscriminator, DFHead, PairedDiscriminator
from t2i_hpc.models.text_encoder import TextFeatures
from t2i_hpc.systems.base import GAN, Losses, Phase, Term, refuse_settings
from t2i_hpc.systems.encoders import build_text_encoder, frozen, scale_images
from t2i_hpc.systems.penalties import Penalty

_CUT = 2.0  # standard deviations that noise is cut at


@dataclass(frozen=True)
class DFGANStep:
    """What the phases of one step share.

    Attributes:
        real: images (B, 3, R, R) in [-1, 1].
        sentence: (B, S), without graph.
        noise: (B, noise_width).
        fake: generated images with the generator's graph; see :class:`Phase`, `redraw`.
    """

    real: Tensor
    sentence: Tensor
    noise: Tensor
    fake: Tensor


class DFGAN(GAN):
    """The system ``df_gan``; see the module's text."""

    config: DFGANConfig
    generator: DFGenerator

    def __init__(self, config: DFGANConfig, vocabulary_size: int) -> None:
        _check_encoder(config)
        self.penalty = Penalty(config)
        width = config.text_encoder.width
        generator = DFGenerator(
            config.resolution,
            width=config.generator_width,
            noise_width=config.noise_width,
            sentence_width=width,
        )
        self.discriminator = PairedDiscriminator(
            DFDiscriminator(config.resolution, config.discriminator_width),
            DFHead(config.discriminator_width, width),
        )
        super().__init__(
            config,
            generator,
            {"discriminator": self.discriminator},
            build_text_encoder(config.text_encoder, vocabulary_size),
        )
        self.phases = [
            self.penalty.phase("discriminator", self.discriminator_losses, self.hinge_losses),
            Phase("generator", ("generator",), self.generator_losses, self.redraw),
        ]

    def begin(self, batch: Batch, noise: Tensor) -> DFGANStep:
        """Encode the captions and generate the fake images of a step."""
        self.set_modes()
        with torch.no_grad():
            sentence = self.text_encoder(batch.tokens, batch.lengths).sentence
        fake = self.generator(noise, sentence).images[-1]
        return DFGANStep(scale_images(batch.images), sentence, noise, fake)

    def redraw(self, step: DFGANStep) -> DFGANStep:
        """Generate the same images with graph; there are no running statistics."""
        return replace(step, fake=self.generator(step.noise, step.sentence).images[-1])

    def synthesize(
        self, generator: nn.Module, text: TextFeatures, lengths: Tensor, noise: Tensor
    ) -> GeneratedImages:
        """Run the generator, or its EMA, on noise that is cut and scaled as the code does."""
        scale = self.config.truncation
        bent = scale * truncated(noise) if scale else noise
        return super().synthesize(generator, text, lengths, bent)

    def discriminator_losses(self, step: DFGANStep) -> Losses:
        """Hinge losses and the penalty from one forward of the real pairs."""
        network = self.discriminator
        penalty, real, matching = self.penalty.pairs(network, step.real, step.sentence, step.noise)
        # Not joined with the real images, or the penalty would differentiate these as well.
        fake = network.features(step.fake.detach())
        return {**self._hinge(step, matching, real, fake), "gradient": self.penalty.term(penalty)}

    def hinge_losses(self, step: DFGANStep) -> Losses:
        """Hinge losses without the penalty: real and fake images share a forward."""
        images = torch.cat([step.real, step.fake.detach()])
        real, fake = self.discriminator.features(images).chunk(2)
        return self._hinge(step, self.discriminator.logits(real, step.sentence), real, fake)

    def _hinge(self, step: DFGANStep, matching: Tensor, real: Tensor, fake: Tensor) -> Losses:
        """Hinge losses of matching logits (B,) and of features of real and fake images."""
        logits = self.discriminator.logits
        wrong = logits(real, mismatched(step.sentence))
        return {
            "real": Term(hinge_real(matching)),
            "mismatch": Term(hinge_mismatch(wrong, self.config.mismatch), 0.5),
            "fake": Term(hinge_fake(logits(fake, step.sentence)), 0.5),
        }

    def generator_losses(self, step: DFGANStep) -> Losses:
        """Adversarial loss of the fake images."""
        with frozen(self.discriminator):
            logits = self.discriminator(step.fake, step.sentence)
        return {"adversarial": Term(hinge_generator(logits))}


def _check_encoder(config: DFGANConfig) -> None:
    """Refuse settings of a text encoder that is trained: here it is frozen."""
    given = {
        "text_encoder.training": config.text_encoder.training != "frozen",
        "text_encoder.clip": config.text_encoder.clip is not None,
    }
    refuse_settings(
        given,
        "has no effect on df_gan, whose text encoder is frozen: leave it out, or take "
        "system=ssa_gan, which trains it",
    )


def truncated(noise: Tensor) -> Tensor:
    """Return normal noise of any shape bent to the normal distribution cut at ±2 deviations.

    Each number keeps its place in its distribution (its quantile), so images remain functions of
    the noise.
    """
    wide = noise.double()
    edge = torch.special.ndtr(torch.full((), -_CUT, dtype=wide.dtype, device=wide.device))
    share = edge + (1 - 2 * edge) * torch.special.ndtr(wide)
    bent: Tensor = torch.special.ndtri(share)
    return bent.to(noise.dtype)
