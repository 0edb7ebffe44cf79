"""What can be converted: the layouts of each system's parts, as data."""

from __future__ import annotations

from collections.abc import Mapping

from t2i_hpc.common.errors import nearest
from t2i_hpc.convert import names
from t2i_hpc.convert.layouts import Layout, Part
from t2i_hpc.convert.shapes import ConversionError, Shapes
from t2i_hpc.convert.staged_parts import discriminator_parts, generator_part
from t2i_hpc.models.df_networks import DFDiscriminator, DFGenerator, DFHead, EarlyDFGenerator
from t2i_hpc.models.discriminator import MatchingDiscriminator
from t2i_hpc.models.image_encoder import ImageEncoder, InceptionTrunk
from t2i_hpc.models.ssa_generator import SSAGenerator
from t2i_hpc.models.text_encoder import LSTMTextEncoder


def find_part(system: str, part: str) -> Part:
    """Look a part up.

    Raises:
        ConversionError: there is no such system, or the system has no such part.
    """
    systems = {name for name, _ in PARTS}
    if system not in systems:
        raise ConversionError(f"system={system} is not offered: {nearest(system, systems)}")
    offered = [name for of, name in PARTS if of == system]
    if part not in offered:
        raise ConversionError(f"part={part} is not offered for {system}: {nearest(part, offered)}")
    return PARTS[system, part]


def _build_ssa_generator(shapes: Shapes) -> SSAGenerator:
    return SSAGenerator(
        shapes.resolution(first_block_enlarges=False),
        width=shapes.side("conv_img.2.weight", 1),
        noise_width=shapes.side("fc.weight", 1),
        sentence_width=shapes.side("block0.affine0.fc_gamma.linear1.weight", 1),
        mask_width=shapes.side("conv_mask.0.weight", 0),
    )


def _build_early_df_generator(shapes: Shapes) -> EarlyDFGenerator:
    return EarlyDFGenerator(
        shapes.resolution(first_block_enlarges=False),
        width=shapes.side("conv_img.1.weight", 1),
        noise_width=shapes.side("fc.weight", 1),
        sentence_width=shapes.side("block0.affine0.fc_gamma.linear1.weight", 1),
    )


def _build_df_generator(shapes: Shapes) -> DFGenerator:
    noise_width = shapes.side("fc.weight", 1)
    condition = shapes.side("GBlocks.0.fuse1.affine0.fc_gamma.linear1.weight", 1)
    return DFGenerator(
        shapes.resolution(first_block_enlarges=True),
        width=shapes.side("to_rgb.1.weight", 1),
        noise_width=noise_width,
        sentence_width=max(1, condition - noise_width),
    )


def _build_matching_discriminator(shapes: Shapes) -> MatchingDiscriminator:
    resolution, width = shapes.resolution(True), shapes.side("conv_img.weight", 0)
    joined = shapes.side("COND_DNET.joint_conv.0.weight", 1)
    features = min(16, 1 << shapes.blocks) * width
    return MatchingDiscriminator(resolution, width, max(1, joined - features))


def _build_df_discriminator(shapes: Shapes) -> DFDiscriminator:
    return DFDiscriminator(shapes.resolution(True), shapes.side("conv_img.weight", 0))


def _build_df_head(shapes: Shapes) -> DFHead:
    width = shapes.side("joint_conv.0.weight", 0) // 2
    return DFHead(width, max(1, shapes.side("joint_conv.0.weight", 1) - 8 * width))


def _build_text_encoder(shapes: Shapes) -> LSTMTextEncoder:
    return LSTMTextEncoder(
        shapes.side("encoder.weight", 0),
        width=2 * shapes.side("rnn.weight_hh_l0", 1),
        embedding_width=shapes.side("encoder.weight", 1),
    )


def _build_image_encoder(shapes: Shapes) -> ImageEncoder:
    width = shapes.side("emb_features.weight", 0)
    trunk = InceptionTrunk()
    return ImageEncoder(trunk, trunk.local_width, trunk.pooled_width, width)


def _staged(system: str, stage: str, norm: str) -> dict[tuple[str, str], Part]:
    """Return a generator of stages and its discriminators."""
    parts = {"generator": generator_part(stage), **discriminator_parts(norm)}
    return {(system, name): part for name, part in parts.items()}


_MATCHING_DISCRIMINATOR = Layout(
    MatchingDiscriminator,
    _build_matching_discriminator,
    names.matching_discriminator,
    mark="COND_DNET.joint_conv.0.weight",
    dead="conv_s",
)

PARTS: Mapping[tuple[str, str], Part] = {
    ("ssa_gan", "generator"): Part(
        (
            Layout(
                SSAGenerator, _build_ssa_generator, names.ssa_generator, mark="conv_mask.0.weight"
            ),
        )
    ),
    ("ssa_gan", "discriminator"): Part((_MATCHING_DISCRIMINATOR,)),
    ("df_gan", "generator"): Part(
        (
            Layout(
                EarlyDFGenerator,
                _build_early_df_generator,
                names.early_df_generator,
                mark="block0.gamma",
            ),
            Layout(
                DFGenerator,
                _build_df_generator,
                names.df_generator,
                mark="GBlocks.0.c1.weight",
                blocks="GBlocks.",
            ),
        ),
        nested="netG",
    ),
    ("df_gan", "discriminator"): Part(
        (
            _MATCHING_DISCRIMINATOR,
            Layout(
                DFDiscriminator,
                _build_df_discriminator,
                names.df_discriminator,
                mark="DBlocks.0.gamma",
                blocks="DBlocks.",
                dead="conv_s",
            ),
        ),
        nested="netD",
    ),
    ("df_gan", "head"): Part(
        (Layout(DFHead, _build_df_head, names.df_head, mark="joint_conv.0.weight"),),
        nested="netC",
    ),
    ("damsm", "text"): Part(
        (Layout(LSTMTextEncoder, _build_text_encoder, names.text_encoder, mark="encoder.weight"),)
    ),
    ("damsm", "image"): Part(
        (
            Layout(
                ImageEncoder, _build_image_encoder, names.image_encoder, mark="emb_features.weight"
            ),
        )
    ),
    **_staged("attn_gan", "attention", "batch"),
    **_staged("dm_gan", "memory", "spectral"),
}
