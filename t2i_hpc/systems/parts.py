"""The parts of a one-stage GAN by the names that the configuration gives them.

A part is added by its network, an entry here, and its name among the choices of
:mod:`t2i_hpc.config.one_stage_settings`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn

from t2i_hpc.common.errors import ConfigurationError
from t2i_hpc.config.one_stage_settings import OneStageConfig, SSAGANConfig
from t2i_hpc.losses.adversarial import (
    hinge_fake,
    hinge_generator,
    hinge_mismatch,
    hinge_real,
    mean_of_mismatched,
    relative,
)
from t2i_hpc.models.df_generator import DFGenerator, EarlyDFGenerator
from t2i_hpc.models.discriminator import (
    DFDiscriminator,
    DFHead,
    MatchingDiscriminator,
    PairedDiscriminator,
)
from t2i_hpc.models.ssa_generator import SSAGenerator
from t2i_hpc.systems.base import Losses, Term, refuse_settings


class Discriminator(Protocol):
    """A network that compares images with sentences, and what it looks at them through.

    Attributes:
        frozen: networks that are not its own modules and never trained, by name.
        differentiable_twice: whether it can be penalized.
    """

    frozen: Mapping[str, nn.Module]
    differentiable_twice: bool

    def features(self, image: Tensor, /) -> Any:
        """Return features of images (B, 3, R, R) in [-1, 1]: a tensor (B, …), or several."""

    def logits(self, features: Any, sentence: Tensor, /) -> Tensor:
        """Return logits (B,) or (B, L) of features with sentences (B, S)."""


def build_generator(config: OneStageConfig) -> nn.Module:
    """Build the generator that `config` names: ``forward(noise, sentence) -> GeneratedImages``.

    Raises:
        ConfigurationError: settings that do not fit together.
    """
    return GENERATORS[config.generator](config)


def build_discriminator(config: OneStageConfig) -> nn.Module:
    """Build the :class:`Discriminator` that `config` names.

    Raises:
        ConfigurationError: settings that do not fit together.
    """
    resized = config.projection_side is not None and config.discriminator != "projected"
    refuse_settings(
        {"projection_side": resized},
        f"belongs to system.discriminator=projected: leave it out with {config.discriminator}",
    )
    return DISCRIMINATORS[config.discriminator](config)


def _sizes(config: OneStageConfig) -> dict[str, int]:
    return {
        "width": config.generator_width,
        "noise_width": config.noise_width,
        "sentence_width": config.text_encoder.width,
    }


def _ssa_generator(config: OneStageConfig) -> nn.Module:
    assert isinstance(config, SSAGANConfig)  # no other configuration offers it
    if config.block == "affine":
        _refuse_masks(
            config, "belongs to system.block=ssacn: leave it out with system.block=affine"
        )
        return EarlyDFGenerator(config.resolution, **_sizes(config))
    try:
        return SSAGenerator(
            config.resolution,
            **_sizes(config),
            blocks=config.blocks,
            masks=config.masks,
            mask_width=config.mask_width,
            mask_source=config.mask_source,
            modulation=config.modulation,
        )
    except ValueError as error:
        raise ConfigurationError(f"system.blocks or system.masks: {error}") from error


def _df_generator(config: OneStageConfig) -> nn.Module:
    refuse_ssa_settings(config)
    return DFGenerator(config.resolution, **_sizes(config))


def _rat_generator(config: OneStageConfig) -> nn.Module:
    from t2i_hpc.models.rat_generator import RATGenerator  # whom no other generator needs

    refuse_ssa_settings(config)
    return RATGenerator(config.resolution, **_sizes(config))


def refuse_ssa_settings(config: OneStageConfig) -> None:
    """Refuse settings of SSA-GAN's generator, for another one.

    Raises:
        ConfigurationError: one is given.
    """
    if isinstance(config, SSAGANConfig):
        why = f"belongs to system.generator=ssa: leave it out with {config.generator}"
        refuse_settings({"block": config.block != "ssacn"}, why)
        _refuse_masks(config, why)


def _refuse_masks(config: SSAGANConfig, why: str) -> None:
    given = {
        "blocks": config.blocks is not None,
        "masks": bool(config.masks),
        "mask_source": config.mask_source != "code",
        "modulation": config.modulation != "code",
    }
    refuse_settings(given, why)


def _matching_discriminator(config: OneStageConfig) -> nn.Module:
    width = config.text_encoder.width
    return MatchingDiscriminator(config.resolution, config.discriminator_width, width)


def _df_discriminator(config: OneStageConfig) -> nn.Module:
    return PairedDiscriminator(
        DFDiscriminator(config.resolution, config.discriminator_width),
        DFHead(config.discriminator_width, config.text_encoder.width),
    )


def _projected_discriminator(config: OneStageConfig) -> nn.Module:
    from t2i_hpc.models.projected_discriminator import ProjectedDiscriminator

    width, sentence = config.discriminator_width, config.text_encoder.width
    return ProjectedDiscriminator(config.resolution, width, sentence, config.projection_side)


Builder = Callable[[OneStageConfig], nn.Module]
GENERATORS: dict[str, Builder] = {
    "ssa": _ssa_generator,
    "df": _df_generator,
    "rat": _rat_generator,
}
DISCRIMINATORS: dict[str, Builder] = {
    "matching": _matching_discriminator,
    "df": _df_discriminator,
    "projected": _projected_discriminator,
}


@dataclass(frozen=True)
class AdversarialLoss:
    """What a discriminator lowers, and what a generator does.

    Attributes:
        discriminator: of logits (B, …) of matching, mismatched and fake pairs, and of how
            mismatched ones are counted (:func:`~t2i_hpc.losses.adversarial.mean_of_mismatched`).
        generator: of logits of fake pairs, and of real ones where it is `relative`.
        relative: whether the generator's needs logits of real pairs.
        apart: the discriminator's terms of real images (matching pairs, mismatched ones and how
            they are counted), and those of fake pairs; None: a term compares both.
    """

    discriminator: Callable[[Tensor, Tensor, Tensor, str], Losses]
    generator: Callable[[Tensor, Tensor | None], Tensor]
    relative: bool = False
    apart: tuple[Callable[[Tensor, Tensor, str], Losses], Callable[[Tensor], Losses]] | None = None


def _hinge_of_real(matching: Tensor, wrong: Tensor, mode: str) -> Losses:
    return {"real": Term(hinge_real(matching)), "mismatch": Term(hinge_mismatch(wrong, mode), 0.5)}


def _hinge_of_fake(fake: Tensor) -> Losses:
    return {"fake": Term(hinge_fake(fake), 0.5)}


def _hinge(matching: Tensor, wrong: Tensor, fake: Tensor, mode: str) -> Losses:
    return {**_hinge_of_real(matching, wrong, mode), **_hinge_of_fake(fake)}


def _relativistic(matching: Tensor, wrong: Tensor, fake: Tensor, mode: str) -> Losses:
    """Compare real pairs with both kinds of wrong ones: R3GAN has no sentences and one kind."""
    return {
        "mismatch": Term(mean_of_mismatched(relative(matching, wrong), mode), 0.5),
        "fake": Term(relative(matching, fake).mean(), 0.5),
    }


def _relativistic_generator(fake: Tensor, real: Tensor | None) -> Tensor:
    assert real is not None
    return relative(fake, real).mean()


LOSSES = {
    "hinge": AdversarialLoss(
        _hinge, lambda fake, _: hinge_generator(fake), apart=(_hinge_of_real, _hinge_of_fake)
    ),
    "relativistic": AdversarialLoss(_relativistic, _relativistic_generator, relative=True),
}
