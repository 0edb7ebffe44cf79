"""GANs of one generator and one discriminator: SSA-GAN, DF-GAN, and any parts together.

The parts have names (:mod:`t2i_hpc.systems.parts`); ``ssa_gan`` and ``df_gan`` are the papers'
choices, ``one_stage_gan`` offers all. The phases of a step, in the order of the released code of
SSA-GAN (Hu et al., CVPR 2022):

1. ``discriminator``: adversarial loss of real, mismatched and fake pairs;
2. ``penalty``: of the slope of the discriminator just updated;
3. ``encoders``: DAMSM on real images, where the text encoder is trained as that code does;
4. ``generator``: adversarial loss and DAMSM of the fake images.

With ``discriminator_schedule=merged`` (SSA-GAN's Eq. 6, and DF-GAN as of CVPR 2022, Tao et al.) 1
and 2 are one phase, which shares the forward of the penalized pairs. ``df_gan`` has no DAMSM and
cuts the noise that it generates from; its first version, which updates its discriminator twice,
is ``ssa_gan`` with ``block=affine``.

The generator runs once a step; its graph serves phase 4, its detached images phase 1. With
``text_encoder.training=joint`` (as SSA-GAN's paper says) phase 4 updates the text encoder as well.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from t2i_hpc.common.errors import ConfigurationError
from t2i_hpc.config.one_stage_settings import OneStageConfig, SSAGANConfig
from t2i_hpc.data.batches import Batch
from t2i_hpc.losses.adversarial import mismatched
from t2i_hpc.losses.gradient_penalty import PenalizedPairs
from t2i_hpc.models import GeneratedImages
from t2i_hpc.models.recomputation import statistics_kept
from t2i_hpc.models.text_encoder import TextFeatures
from t2i_hpc.systems.augmented import build_augmentation, kept
from t2i_hpc.systems.base import GAN, Loss, Losses, Phase, SplitLoss, Term, refuse_settings
from t2i_hpc.systems.encoders import (
    as_terms,
    build_images_encoder,
    build_text_encoder,
    damsm_terms,
    frozen,
    scale_images,
)
from t2i_hpc.systems.parts import LOSSES, Discriminator, build_discriminator, build_generator
from t2i_hpc.systems.penalties import Penalty

if TYPE_CHECKING:  # for trainings by a distance alone
    from t2i_hpc.systems.frechet_term import FrechetTerm

_CUT = 2.0  # standard deviations that noise is cut at


@dataclass(frozen=True)
class OneStageStep:
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


class OneStageGAN(GAN):
    """The systems ``ssa_gan``, ``df_gan`` and ``one_stage_gan``; see the module's text."""

    config: OneStageConfig
    # Networks of the parts that are named: each kind has attributes of its own.
    generator: Any
    discriminator: Any

    def __init__(self, config: OneStageConfig, vocabulary_size: int) -> None:
        check_encoders(config)
        self.damsm = config.damsm if isinstance(config, SSAGANConfig) else None
        self.penalty = Penalty(config, config.penalty_norm)
        self.loss = LOSSES[config.loss]
        self.augmentation = build_augmentation(config)
        generator = build_generator(config)
        self.discriminator = network = build_discriminator(config)
        check_penalty(config, self.discriminator, self.penalty)
        self.frechet = _build_frechet(config, network)
        super().__init__(
            config,
            generator,
            {"discriminator": network},
            build_text_encoder(config.text_encoder, vocabulary_size),
            _build_image_encoder(config),
            frozen={
                **self.discriminator.frozen,
                **kept(self.augmentation),
                **(self.frechet.frozen if self.frechet else {}),
            },
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
        adversarial = self._apart(self.discriminator_losses, penalized=False)
        if self.config.discriminator_schedule == "merged":
            merged = self._apart(self.merged_losses, penalized=True)
            return [self.penalty.phase("discriminator", merged, adversarial)]
        phase = Phase("discriminator", ("discriminator",), adversarial)
        if not self.penalty.active:
            return [phase]
        return [phase, self.penalty.phase("penalty", self.penalty_losses)]

    def begin_step(self, images_seen: int) -> None:
        """Begin a step; `images_seen` before it."""
        if self.frechet:
            self.frechet.begin_step(images_seen)

    def begin(self, batch: Batch, noise: Tensor) -> OneStageStep:
        """Encode the captions and generate the fake images of a step."""
        self.set_modes()
        self.augmentation.begin_step()
        with torch.set_grad_enabled(self.trains_encoders):
            text: TextFeatures = self.text_encoder(batch.tokens, batch.lengths)
        fake, real = self._fakes(noise, text), scale_images(batch.images)
        return OneStageStep(batch, real, text, text.sentence.detach(), noise, fake)

    def redraw(self, step: OneStageStep) -> OneStageStep:
        """Generate the same images with graph; running statistics stay."""
        with statistics_kept(self.generator):
            return replace(step, fake=self._fakes(step.noise, step.text))

    def _fakes(self, noise: Tensor, text: TextFeatures) -> Tensor:
        joint = self.config.text_encoder.training == "joint"
        condition = text.sentence if joint else text.sentence.detach()
        images: Tensor = self.generator(noise, condition).images[-1]
        return images

    def synthesize(
        self, generator: nn.Module, text: TextFeatures, lengths: Tensor, noise: Tensor
    ) -> GeneratedImages:
        """Run the generator, or its EMA, on noise that is cut and scaled where that is asked."""
        scale = self.config.truncation
        bent = scale * truncated(noise) if scale else noise
        return super().synthesize(generator, text, lengths, bent)

    def seen(self, images: Tensor, step: OneStageStep) -> Tensor:
        """Return images (B, 3, R, R) as the discriminator sees them: real, fake and penalized."""
        changed: Tensor = self.augmentation(images, step.noise)
        return changed

    def discriminator_losses(self, step: OneStageStep) -> Losses:
        """Adversarial losses: real pairs, real images with wrong captions, fake images."""
        count = len(step.real)
        images = torch.cat([self.seen(step.real, step), self.seen(step.fake.detach(), step)])
        real, fake = _split(self.discriminator.features(images), count)
        matching, generated = (
            self.discriminator.logits(each, step.sentence) for each in (real, fake)
        )
        return self._contest(step, matching, real, generated)

    def merged_losses(self, step: OneStageStep) -> Losses:
        """Adversarial losses and the penalty from one forward of the penalized pairs."""
        real, matching, penalties = self._read_real(step, penalized=True)
        # Not joined with the real images, or the penalty would differentiate these as well.
        generated, others = self._read_fake(step, penalized=True)
        return {**self._contest(step, matching, real, generated), **penalties, **others}

    def _apart(self, whole: Loss, penalized: bool) -> Loss:
        """Let the discriminator's loss be taken in parts, where that is the same loss.

        A term may compare real and fake images, and each forward may move buffers, as those of
        spectral norms.
        """
        if self.loss.apart is None or next(self.discriminator.buffers(), None) is not None:
            return whole
        parts = partial(self.real_losses, penalized), partial(self.fake_losses, penalized)
        return SplitLoss(whole, parts)

    def real_losses(self, penalized: bool, step: OneStageStep) -> Losses:
        """Adversarial losses of real images, with their captions and with wrong ones."""
        assert self.loss.apart is not None
        real, matching, penalties = self._read_real(step, penalized)
        wrong = self.discriminator.logits(real, mismatched(step.sentence))
        losses = self.loss.apart[0](matching, wrong, self.config.mismatch)
        return {**losses, **self._followed(matching), **penalties}

    def fake_losses(self, penalized: bool, step: OneStageStep) -> Losses:
        """Adversarial loss of fake images."""
        assert self.loss.apart is not None
        generated, penalties = self._read_fake(step, penalized)
        return {**self.loss.apart[1](generated), **penalties}

    def _read_real(
        self, step: OneStageStep, penalized: bool
    ) -> tuple[Any, Tensor, dict[str, Term]]:
        """Return features of real images, logits of matching pairs, and their penalty."""
        name = "gradient" if penalized and self.penalty.at_real else ""
        return self._read(self.seen(step.real, step), step, name)

    def _read_fake(self, step: OneStageStep, penalized: bool) -> tuple[Tensor, dict[str, Term]]:
        """Return logits of fake pairs, and their penalty."""
        name = "gradient_fake" if penalized and self.penalty.at_fake else ""
        return self._read(self.seen(step.fake.detach(), step), step, name)[1:]

    def _read(
        self, images: Tensor, step: OneStageStep, penalty: str
    ) -> tuple[Any, Tensor, dict[str, Term]]:
        """Return features, logits and the penalty of that name; none where it is empty."""
        if penalty:
            value, features, logits = self._penalty(images, step)
            return features, logits, {penalty: self.penalty.term(value)}
        features = self.discriminator.features(images)
        return features, self.discriminator.logits(features, step.sentence), {}

    def penalty_losses(self, step: OneStageStep) -> Losses:
        """Penalty at real or fake matching pairs, or both."""
        images = {
            "gradient": step.real if self.penalty.at_real else None,
            "gradient_fake": step.fake.detach() if self.penalty.at_fake else None,
        }
        return {
            name: self.penalty.term(self._penalty(self.seen(image, step), step).penalty)
            for name, image in images.items()
            if image is not None
        }

    def _penalty(self, images: Tensor, step: OneStageStep) -> PenalizedPairs:
        return self.penalty.pairs(self.discriminator, images, step.sentence, step.noise)

    def _contest(
        self, step: OneStageStep, matching: Tensor, real: Any, generated: Tensor
    ) -> Losses:
        """Return the discriminator's losses of logits, and of features of real images."""
        wrong = self.discriminator.logits(real, mismatched(step.sentence))
        losses = self.loss.discriminator(matching, wrong, generated, self.config.mismatch)
        return {**losses, **self._followed(matching)}

    def _followed(self, matching: Tensor) -> dict[str, Term]:
        """Let an adapted augmentation follow real logits; return what it logs of itself."""
        logged = self.augmentation.followed(matching)
        return {name: Term(value, 0.0) for name, value in logged.items()}

    def encoder_losses(self, step: OneStageStep) -> Losses:
        """DAMSM of real images and their captions, weight 1."""
        return as_terms(self._damsm(step.real, step.text, step.batch), "real_", 1.0)

    def generator_losses(self, step: OneStageStep) -> Losses:
        """Adversarial loss and DAMSM of the fake images; with ``joint`` DAMSM of real ones too.

        And their Fréchet distance, where that is asked for.
        """
        adversarial, maps = self._adversarial(step)
        losses: dict[str, Term] = {"adversarial": Term(adversarial)}
        if self.frechet and self.frechet.due:
            losses["frechet"] = self.frechet.term(step.fake, maps)
        joint = self.config.text_encoder.training == "joint"
        if self.damsm is not None and self.damsm.weight > 0:
            text = step.text if joint else TextFeatures(*(t.detach() for t in step.text))
            losses |= as_terms(self._damsm_of_fakes(step, text), "damsm_", self.damsm.weight)
        return {**losses, **self.encoder_losses(step)} if joint else losses

    def _adversarial(self, step: OneStageStep) -> tuple[Tensor, list[Tensor] | None]:
        """Return the loss, and the frozen network's maps of the fakes where both need them."""
        maps, images = None, self.seen(step.fake, step)
        with frozen(self.discriminator):
            if self.frechet and self.frechet.due and self.frechet.shared:
                fake, maps = self.discriminator.features_with_maps(images)
            else:
                fake = self.discriminator.features(images)
            logits = self.discriminator.logits(fake, step.sentence)
            if not self.loss.relative:
                return self.loss.generator(logits, None), maps
            # The step's own real pairs; R3GAN has a batch of its own here, read for it alone.
            with torch.no_grad():
                real = self.discriminator.features(self.seen(step.real, step))
                matching = self.discriminator.logits(real, step.sentence)
        return self.loss.generator(logits, matching), maps

    def _damsm_of_fakes(self, step: OneStageStep, text: TextFeatures) -> dict[str, Tensor]:
        if self.image_encoder is None:
            return {}
        with frozen(self.image_encoder):
            return self._damsm(step.fake, text, step.batch)

    def _damsm(self, images: Tensor, text: TextFeatures, batch: Batch) -> dict[str, Tensor]:
        if self.image_encoder is None or self.damsm is None:
            return {}
        return damsm_terms(images, self.image_encoder, text, batch, self.damsm)


def _build_frechet(config: OneStageConfig, discriminator: nn.Module) -> FrechetTerm | None:
    if config.fd_weight > 0:
        from t2i_hpc.systems.frechet_term import FrechetTerm

        return FrechetTerm(config, discriminator)
    names = ("fd_from_images", "fd_half_life", "fd_real_images", "fd_side")
    refuse_settings(
        {name: getattr(config, name) != getattr(OneStageConfig, name) for name in names},
        "has no effect without system.fd_weight: give that too",
    )
    return None


def _build_image_encoder(config: OneStageConfig) -> Any:
    if not isinstance(config, SSAGANConfig):
        return None
    needed = config.damsm.weight > 0 or config.text_encoder.training != "frozen"
    width = config.text_encoder.width
    return build_images_encoder(config.image_encoder, width) if needed else None


def check_encoders(config: OneStageConfig) -> None:
    """Refuse settings of trained encoders where they are frozen.

    Raises:
        ConfigurationError: such a setting is given.
    """
    text = config.text_encoder
    clipped = text.clip is not None
    if not isinstance(config, SSAGANConfig):
        refuse_settings(
            {"text_encoder.training": text.training != "frozen", "text_encoder.clip": clipped},
            f"has no effect on {config.name}, whose text encoder is frozen: leave it out, or take "
            "system=ssa_gan, which trains it",
        )
    elif text.training == "frozen":
        refuse_settings(
            {
                "text_encoder.clip": clipped,
                "image_encoder.batch_statistics": config.image_encoder.batch_statistics,
            },
            "has no effect on frozen encoders: take system.text_encoder.training=damsm or joint",
        )


def check_penalty(config: OneStageConfig, discriminator: Discriminator, penalty: Penalty) -> None:
    """Refuse a penalty of a discriminator that has none.

    Raises:
        ConfigurationError: there is one.
    """
    if penalty.active and not discriminator.differentiable_twice:
        raise ConfigurationError(
            f"system.penalty={config.penalty} is for discriminators of pixels: take "
            f"system.penalty=none with system.discriminator={config.discriminator}"
        )


def _split(features: Any, count: int) -> tuple[Any, Any]:
    """Cut features of joined images, a tensor or a list of them, behind the first `count`."""
    if isinstance(features, Tensor):
        return features[:count], features[count:]
    return [one[:count] for one in features], [one[count:] for one in features]


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
