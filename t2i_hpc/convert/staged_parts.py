"""AttnGAN's and DM-GAN's parts: how their networks are built from the shapes of a checkpoint."""

from __future__ import annotations

from collections.abc import Callable

from t2i_hpc.convert import staged_names as names
from t2i_hpc.convert.layouts import Layout, Part
from t2i_hpc.convert.shapes import Shapes
from t2i_hpc.models.staged_discriminator import StagedDiscriminator
from t2i_hpc.models.staged_generator import SinglePictureGenerator, StagedGenerator

_FIRST_SIDE = 64  # px of the first stage's image in every published network
_SIDES = (64, 128, 256)


def generator_part(stage: str) -> Part:
    """Return the part of generators whose further stages are all `stage`."""
    single = Layout(
        SinglePictureGenerator,
        _generator_builder(SinglePictureGenerator, stage, lambda stages: "img_net"),
        names.single_picture_generator,
        mark="img_net.img.0.weight",
    )
    every = Layout(
        StagedGenerator,
        _generator_builder(StagedGenerator, stage, lambda stages: f"img_net{stages}"),
        names.staged_generator,
        mark="img_net1.img.0.weight",
    )
    return Part((single, every))


def discriminator_parts(norm: str) -> dict[str, Part]:
    """Return the parts ``discriminator64``, ``discriminator128`` and ``discriminator256``."""
    pairs = names.spectral_discriminator if norm == "spectral" else names.normalised_discriminator
    weight = "module.weight_bar" if norm == "spectral" else "weight"

    def layout(side: int) -> Layout:
        build = _discriminator_builder(side, norm, weight)
        return Layout(StagedDiscriminator, build, pairs, mark=f"img_code_s16.0.{weight}")

    return {f"discriminator{side}": Part((layout(side),)) for side in _SIDES}


def _generator_builder(
    network: type[StagedGenerator], stage: str, image: Callable[[int], str]
) -> Callable[[Shapes], StagedGenerator]:
    def build(shapes: Shapes) -> StagedGenerator:
        stages = 1 + sum(f"h_net{n}.upsample.1.weight" in shapes.shapes for n in (2, 3))
        condition = shapes.side("ca_net.fc.weight", 0) // 4
        inputs = shapes.side("h_net1.fc.0.weight", 1)
        return network(
            ["initial", *[stage] * (stages - 1)],
            _FIRST_SIDE << (stages - 1),
            width=shapes.side(f"{image(stages)}.img.0.weight", 1),
            noise_width=max(1, inputs - condition),
            sentence_width=shapes.side("ca_net.fc.weight", 1),
            condition_width=condition,
            residuals=_residuals(shapes),
        )

    return build


def _residuals(shapes: Shapes) -> int:
    """Return the number of residual blocks of the second stage."""
    return sum(
        name.startswith("h_net2.") and name.endswith(".block.0.weight") for name in shapes.shapes
    )


def _discriminator_builder(
    side: int, norm: str, weight: str
) -> Callable[[Shapes], StagedDiscriminator]:
    def build(shapes: Shapes) -> StagedDiscriminator:
        width = shapes.side(f"img_code_s16.0.{weight}", 0)
        joined = shapes.side(f"COND_DNET.jointConv.0.{weight}", 1)
        return StagedDiscriminator(
            side,
            width,
            max(1, joined - 8 * width),
            norm=norm,
            unconditional="UNCOND_DNET.outlogits.0.weight" in shapes.shapes,
        )

    return build
