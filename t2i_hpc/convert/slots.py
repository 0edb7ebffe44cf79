"""Which networks of a system were published, and whether a file's network is the experiment's."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from t2i_hpc.common.files import sha256_of_file
from t2i_hpc.config.gan_settings import SystemConfig
from t2i_hpc.config.one_stage_settings import CLIPGANConfig, OneStageConfig, SSAGANConfig
from t2i_hpc.config.staged_settings import StagedGANConfig
from t2i_hpc.config.systems import DAMSMPretrainingConfig
from t2i_hpc.convert.networks import ConversionError
from t2i_hpc.convert.reference import describe_misfit, shapes_of, sizes_of
from t2i_hpc.systems.base import System

TEXT, IMAGE = "text_encoder", "image_encoder"
_SIDES = ("discriminator64", "discriminator128", "discriminator256")
NETWORKS = ("generator", "discriminator", "head", *_SIDES, TEXT, IMAGE)
# Settings that decide the sizes of a network, by what its class calls them.
_SETTINGS = {
    "resolution": "resolution",
    "noise_width": "noise_width",
    "sentence_width": "text_encoder.width",
    "mask_width": "mask_width",
    "condition_width": "condition_width",
    "residuals": "residuals",
    "unconditional": "unconditional",
}
_WIDTHS = {
    TEXT: "text_encoder.width",
    IMAGE: "text_encoder.width",
    "generator": "generator_width",
}


@dataclass(frozen=True)
class Slot:
    """A network of a system that a published file can hold.

    Attributes:
        key: the setting of `convert` that names the file.
        system, network: what :mod:`t2i_hpc.convert.reference` calls it.
        place: its module in the system's, dotted.
    """

    key: str
    system: str
    network: str
    place: str


def slots_of(config: SystemConfig) -> list[Slot]:
    """Return which networks of a system were published, and under which names.

    Raises:
        ConversionError: nobody published a system of this kind.
    """
    if isinstance(config, CLIPGANConfig):
        return _clip_networks()
    encoders = [Slot(TEXT, "damsm", "text", TEXT), Slot(IMAGE, "damsm", "image", IMAGE)]
    text = getattr(config, TEXT, None)
    if getattr(text, "name", "") != "lstm":
        raise ConversionError(
            "system.text_encoder.name=bert: all published text encoders are LSTMs; take another "
            "experiment="
        )
    if isinstance(config, DAMSMPretrainingConfig):
        return encoders
    return [*_networks_of(config), *encoders]


def _clip_networks() -> list[Slot]:
    inside = {"discriminator": "discriminator.trunk", "head": "discriminator.head"}
    places = {"generator": "generator", **inside}
    return [Slot(name, "clip_gan", name, place) for name, place in places.items()]


def _networks_of(config: SystemConfig) -> list[Slot]:
    if isinstance(config, OneStageConfig) and _parts_of(config) == ("rat", "matching"):
        return [Slot(name, "rat_gan", name, name) for name in ("generator", "discriminator")]
    if isinstance(config, SSAGANConfig) and _parts_of(config) == ("ssa", "matching"):
        system = "ssa_gan" if config.block == "ssacn" else "df_gan"
        return [Slot(name, system, name, name) for name in ("generator", "discriminator")]
    if isinstance(config, OneStageConfig) and _parts_of(config) == ("df", "df"):
        own = ("discriminator", "head")
        inside = [Slot(name, "df_gan", name, f"discriminator.{name}") for name in own]
        return [Slot("generator", "df_gan", "generator", "generator"), *inside]
    if isinstance(config, StagedGANConfig) and len(set(config.stages[1:])) == 1:
        system = {"attention": "attn_gan", "memory": "dm_gan"}[config.stages[1]]
        return [Slot(name, system, name, name) for name in ("generator", *_SIDES)]
    raise ConversionError(
        f"system={config.name}: no checkpoint of such a system was published; take the experiment "
        "of SSA-GAN, DF-GAN, RAT-GAN, GALIP, AttnGAN, DM-GAN or their encoders that the files "
        "belong to"
    )


def _parts_of(config: OneStageConfig) -> tuple[str, str]:
    return config.generator, config.discriminator


@dataclass(frozen=True)
class Source:
    """A network that a file gives."""

    slot: Slot
    path: Path
    module: nn.Module

    @cached_property
    def sha256(self) -> str:
        """Identity of the file."""
        return sha256_of_file(self.path)

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The network's tensors by their names in the system."""
        named = self.module.state_dict().items()
        return {f"{self.slot.place}.{name}": value for name, value in named}

    def text(self) -> str:
        """Say what it is, for people."""
        count = sum(parameter.numel() for parameter in self.module.parameters())
        return f"{self.slot.key}: {self.path} ({type(self.module).__name__}, {count:,} parameters)"


def check_fit(source: Source, system: System, config: SystemConfig) -> None:
    """Refuse a network of other sizes than the experiment's; say which settings would fit."""
    title, place = f"{source.slot.key}={source.path}", source.slot.place
    if place.split(".")[0] not in system.modules:
        raise ConversionError(f"{title}: the experiment has no such network, so leave it out")
    expected = system.modules.get_submodule(place)
    if type(source.module) is not type(expected):
        raise ConversionError(
            f"{title} holds a {type(source.module).__name__} and the experiment has a "
            f"{type(expected).__name__}: take the experiment= that the file belongs to"
        )
    reason = describe_misfit(shapes_of(source.module), shapes_of(expected))
    if reason:
        fitting = _fitting(source, config)
        raise ConversionError(
            f"{title} does not fit the experiment ({reason}): "
            + (f"add {' '.join(fitting)}" if fitting else "take the one that it belongs to")
        )


def _fitting(source: Source, config: SystemConfig) -> list[str]:
    """Return the settings by which the system would have the sizes of a file."""
    slot = source.slot
    names = _SETTINGS | {"width": _WIDTHS.get(slot.key, "discriminator_width")}
    names |= {"embedding_width": "text_encoder.embedding_width"} if slot.key == TEXT else {}
    found = []
    for size, value in sizes_of(slot.system, slot.network, source.module).items():
        setting: Any = config
        for part in names.get(size, "").split("."):
            setting = getattr(setting, part, None)
        if setting is not None and setting != value:
            found.append(f"system.{names[size]}={str(value).lower()}")
    return found
