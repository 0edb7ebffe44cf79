"""The networks that can be converted, and how their sizes are read off the shapes of tensors."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import nn

from t2i_hpc.common.errors import UserError, nearest
from t2i_hpc.convert import names
from t2i_hpc.models.clip_discriminator import CLIPHead, CLIPTrunk
from t2i_hpc.models.clip_generator import CLIPGenerator
from t2i_hpc.models.df_generator import DFGenerator, EarlyDFGenerator
from t2i_hpc.models.discriminator import DFDiscriminator, DFHead, MatchingDiscriminator
from t2i_hpc.models.image_encoder import ImageEncoder, InceptionTrunk
from t2i_hpc.models.rat_generator import RATGenerator
from t2i_hpc.models.ssa_generator import SSAGenerator
from t2i_hpc.models.staged_discriminator import StagedDiscriminator
from t2i_hpc.models.staged_generator import SingleImageGenerator, StagedGenerator
from t2i_hpc.models.text_encoder import LSTMTextEncoder

Shape = tuple[int, ...]
Sizes = dict[str, Any]


class ConversionError(UserError):
    """A checkpoint that is not what it is said to be, or cannot be read or written."""


@dataclass(frozen=True)
class Shapes:
    """Shapes of tensors by the reference's names; `title` names the network in messages."""

    title: str
    by_name: Mapping[str, Shape]

    def __contains__(self, name: str) -> bool:
        return name in self.by_name

    def size(self, name: str, dim: int) -> int:
        """Return the size of a tensor's dimension.

        Raises:
            ConversionError: there is no such tensor, or it has fewer dimensions.
        """
        shape = self.by_name.get(name, ())
        if dim < len(shape) and shape[dim]:
            return shape[dim]
        found = f"is {shape}" if name in self else "is missing"
        raise ConversionError(
            f"{self.title}: {name}, which tells the network's size, {found}; is this checkpoint "
            "whole, and of this system and network?"
        )

    def blocks(self, prefix: str) -> int:
        """Return the number of blocks ``{prefix}0``, ``{prefix}1``, … (at most 12).

        Raises:
            ConversionError: there are less than two.
        """
        numbers = range(names.MOST_BLOCKS)
        blocks = [any(name.startswith(f"{prefix}{n}.") for name in self.by_name) for n in numbers]
        count = [*blocks, False].index(False)
        if count < 2:
            raise ConversionError(
                f"{self.title}: {prefix}{count} is missing; is this checkpoint whole, and of this "
                "system and network?"
            )
        return count


@dataclass(frozen=True)
class ReferenceNetwork:
    """One version of a network of the reference.

    Attributes:
        kind: our class.
        sizes: reads what it is made with off the shapes of the reference's tensors.
        patterns: their names and ours, of :mod:`t2i_hpc.convert.names`.
        make: makes it, where the class itself takes more than sizes.
        beside: what names in a file begin with that are of another network, and are left out.
    """

    kind: type[nn.Module]
    sizes: Callable[[Shapes], Sizes]
    patterns: names.Patterns
    make: Callable[..., nn.Module] | None = None
    beside: str = ""

    def build(self, shapes: Shapes) -> nn.Module:
        """Make the module of the reference's shapes."""
        return (self.make or self.kind)(**self.sizes(shapes))


def find_network(system: str, network: str) -> tuple[ReferenceNetwork, ...]:
    """Return the versions of a network.

    Raises:
        ConversionError: there is no such system, or the system has no such network.
    """
    offered = NETWORKS.get(system)
    if offered is None:
        raise ConversionError(f"system={system} is not offered: {nearest(system, NETWORKS)}")
    if network not in offered:
        raise ConversionError(
            f"network={network} is not offered for {system}: {nearest(network, offered)}"
        )
    return offered[network]


# Images have 4 px and are doubled by every block; by all but the first where it starts at 4 px.
def _ssa_generator(shapes: Shapes) -> Sizes:
    return {
        "resolution": 4 << (shapes.blocks("block") - 1),
        "width": shapes.size("conv_img.2.weight", 1),
        "noise_width": shapes.size("fc.weight", 1),
        "sentence_width": shapes.size("block0.affine0.fc_gamma.linear1.weight", 1),
        "mask_width": shapes.size("conv_mask.0.weight", 0),
    }


def _early_df_generator(shapes: Shapes) -> Sizes:
    return {
        "resolution": 4 << (shapes.blocks("block") - 1),
        "width": shapes.size("conv_img.1.weight", 1),
        "noise_width": shapes.size("fc.weight", 1),
        "sentence_width": shapes.size("block0.affine0.fc_gamma.linear1.weight", 1),
    }


def _rat_generator(shapes: Shapes) -> Sizes:
    return {
        "resolution": 4 << (shapes.blocks("block") - 1),
        "width": shapes.size("conv_img.1.weight", 1),
        "noise_width": shapes.size("fc.weight", 1),
        "sentence_width": shapes.size("lstm.W", 0),
    }


def _df_generator(shapes: Shapes) -> Sizes:
    noise_width = shapes.size("fc.weight", 1)
    condition = shapes.size("GBlocks.0.fuse1.affine0.fc_gamma.linear1.weight", 1)
    return {
        "resolution": 4 << shapes.blocks("GBlocks."),
        "width": shapes.size("to_rgb.1.weight", 1),
        "noise_width": noise_width,
        "sentence_width": max(1, condition - noise_width),
    }


def _matching_discriminator(shapes: Shapes) -> Sizes:
    blocks, width = shapes.blocks("block"), shapes.size("conv_img.weight", 0)
    joined = shapes.size("COND_DNET.joint_conv.0.weight", 1)
    sentence_width = max(1, joined - min(16, 1 << blocks) * width)
    return {"resolution": 4 << blocks, "width": width, "sentence_width": sentence_width}


def _df_discriminator(shapes: Shapes) -> Sizes:
    width = shapes.size("conv_img.weight", 0)
    return {"resolution": 4 << shapes.blocks("DBlocks."), "width": width}


def _df_head(shapes: Shapes) -> Sizes:
    width = shapes.size("joint_conv.0.weight", 0) // 2
    joined = shapes.size("joint_conv.0.weight", 1)
    return {"width": width, "sentence_width": max(1, joined - 8 * width)}


def _clip_generator(shapes: Shapes) -> Sizes:
    noise_width, vision = (
        shapes.size("fc_code.weight", 1),
        shapes.size("mapping.conv_fuse.weight", 0),
    )
    condition = shapes.size("GBlocks.0.fuse1.affine0.fc_gamma.linear1.weight", 1)
    bridge = shapes.size("mapping.conv_fuse.weight", 1)
    blocks = shapes.blocks("GBlocks.")
    return {
        # Six blocks make 256 px too; the released one makes 224.
        "resolution": 224 if blocks == 6 else 4 << blocks,
        "width": shapes.size("to_rgb.1.weight", 1),
        "noise_width": noise_width,
        "sentence_width": max(1, condition - noise_width),
        "vision_width": vision,
        "grid": math.isqrt(shapes.size("fc_code.weight", 0) // bridge),
        "prompts": shapes.size("mapping.fc_prompt.weight", 0) // vision,
        "bridge_width": bridge,
    }


def _clip_trunk(shapes: Shapes) -> Sizes:
    return {
        "vision_width": shapes.size("DBlocks.0.conv_r.0.weight", 0),
        "levels": 1 + shapes.blocks("DBlocks."),
        "width": shapes.size("main.conv_r.0.weight", 0) // 8,
    }


def _clip_head(shapes: Shapes) -> Sizes:
    last = shapes.size("joint_conv.2.weight", 2)
    return {**_df_head(shapes), "grid": shapes.size("joint_conv.0.weight", 2) + last - 1}


def _text_encoder(shapes: Shapes) -> Sizes:
    return {
        "vocabulary_size": shapes.size("encoder.weight", 0),
        "width": 2 * shapes.size("rnn.weight_hh_l0", 1),
        "embedding_width": shapes.size("encoder.weight", 1),
    }


def _image_encoder(shapes: Shapes) -> Sizes:
    return {"width": shapes.size("emb_features.weight", 0)}


def _make_image_encoder(width: int) -> ImageEncoder:
    trunk = InceptionTrunk()
    return ImageEncoder(trunk, trunk.local_width, trunk.pooled_width, width)


def _staged_generators(stage: str) -> tuple[ReferenceNetwork, ...]:
    """Return the generator with one image after the last stage, and that with one after each."""

    def sizes(kind: type[StagedGenerator], shapes: Shapes) -> Sizes:
        stages = 1 + sum(f"h_net{n}.upsample.1.weight" in shapes for n in (2, 3))
        image = "img_net" if kind is SingleImageGenerator else f"img_net{stages}"
        residuals = [f"h_net2.residual.{n}.block.0.weight" in shapes for n in range(9)]
        condition = shapes.size("ca_net.fc.weight", 0) // 4
        return {
            "stages": ["initial", *[stage] * (stages - 1)],
            "resolution": 64 << (stages - 1),
            "width": shapes.size(f"{image}.img.0.weight", 1),
            "noise_width": max(1, shapes.size("h_net1.fc.0.weight", 1) - condition),
            "sentence_width": shapes.size("ca_net.fc.weight", 1),
            "condition_width": condition,
            "residuals": sum(residuals),
        }

    return tuple(
        ReferenceNetwork(kind, partial(sizes, kind), patterns)
        for kind, patterns in (
            (SingleImageGenerator, names.SINGLE_IMAGE_GENERATOR),
            (StagedGenerator, names.STAGED_GENERATOR),
        )
    )


def _staged_discriminator(resolution: int, norm: str) -> tuple[ReferenceNetwork]:
    spectral = norm == "spectral"
    patterns = names.dm_discriminator if spectral else names.attn_discriminator
    weight = "module.weight_bar" if spectral else "weight"

    def sizes(shapes: Shapes) -> Sizes:
        width = shapes.size(f"img_code_s16.0.{weight}", 0)
        joined = shapes.size(f"COND_DNET.jointConv.0.{weight}", 1)
        return {
            "resolution": resolution,
            "width": width,
            "sentence_width": max(1, joined - 8 * width),
            "norm": norm,
            "unconditional": "UNCOND_DNET.outlogits.0.weight" in shapes,
        }

    return (ReferenceNetwork(StagedDiscriminator, sizes, patterns(resolution)),)


def _staged_gan(stage: str, norm: str) -> dict[str, tuple[ReferenceNetwork, ...]]:
    discriminators = {f"discriminator{side}": side for side in (64, 128, 256)}
    return {
        "generator": _staged_generators(stage),
        **{name: _staged_discriminator(side, norm) for name, side in discriminators.items()},
    }


_MATCHING_DISCRIMINATOR = ReferenceNetwork(
    MatchingDiscriminator, _matching_discriminator, names.MATCHING_DISCRIMINATOR
)
# Of versions that name a checkpoint's tensors equally well the first is meant: DF-GAN's early
# networks have all tensors of the later ones and more.
NETWORKS: Mapping[str, Mapping[str, tuple[ReferenceNetwork, ...]]] = {
    "ssa_gan": {
        "generator": (ReferenceNetwork(SSAGenerator, _ssa_generator, names.SSA_GENERATOR),),
        "discriminator": (_MATCHING_DISCRIMINATOR,),
    },
    "df_gan": {
        "generator": (
            ReferenceNetwork(DFGenerator, _df_generator, names.DF_GENERATOR),
            ReferenceNetwork(EarlyDFGenerator, _early_df_generator, names.EARLY_DF_GENERATOR),
        ),
        "discriminator": (
            ReferenceNetwork(DFDiscriminator, _df_discriminator, names.DF_DISCRIMINATOR),
            _MATCHING_DISCRIMINATOR,
        ),
        "head": (ReferenceNetwork(DFHead, _df_head, names.DF_HEAD),),
    },
    "rat_gan": {
        "generator": (ReferenceNetwork(RATGenerator, _rat_generator, names.RAT_GENERATOR),),
        "discriminator": (_MATCHING_DISCRIMINATOR,),
    },
    "clip_gan": {
        "generator": (
            ReferenceNetwork(
                CLIPGenerator, _clip_generator, names.CLIP_GENERATOR, beside=names.FROZEN_CLIP
            ),
        ),
        "discriminator": (ReferenceNetwork(CLIPTrunk, _clip_trunk, names.CLIP_TRUNK),),
        "head": (ReferenceNetwork(CLIPHead, _clip_head, names.DF_HEAD),),
    },
    "attn_gan": _staged_gan("attention", "batch"),
    "dm_gan": _staged_gan("memory", "spectral"),
    "damsm": {
        "text": (ReferenceNetwork(LSTMTextEncoder, _text_encoder, names.TEXT_ENCODER),),
        "image": (
            ReferenceNetwork(
                ImageEncoder, _image_encoder, names.IMAGE_ENCODER, _make_image_encoder
            ),
        ),
    },
}
