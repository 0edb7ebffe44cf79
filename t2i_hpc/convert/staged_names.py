"""AttnGAN's and DM-GAN's names beside ours; what a network does not have is passed over.

As in :mod:`t2i_hpc.convert.names`, each function lists pairs (theirs, ours) in the order of
their state dicts. Their stages are numbered from 1, ours from 0.
"""

from __future__ import annotations

from t2i_hpc.convert.names import Pairs

_MOST_STAGES = 3
_MOST_RESIDUALS = 8
_LOOKING = (
    ("att.conv_context", "context"),
    ("A", "word_gate"),
    ("B", "image_gate"),
    ("M_r.0", "write_image"),
    ("M_w.0", "write_words"),
    ("key.0", "key"),
    ("value.0", "value"),
    ("response_gate.0", "response"),
)
_RESIDUAL = ((0, "conv1"), (1, "norm1"), (3, "conv2"), (4, "norm2"))
_SPECTRAL = (
    ("bias", "bias"),
    ("weight_u", "left"),
    ("weight_v", "right"),
    ("weight_bar", "weight"),
)
# Layers after the four of img_code_s16, by the number of all layers.
_LATER_LAYERS = {
    4: (),
    6: ("img_code_s32", "img_code_s32_1"),
    8: ("img_code_s32", "img_code_s64", "img_code_s64_1", "img_code_s64_2"),
}


def staged_generator(blocks: int) -> Pairs:
    """G_NET: an image after each stage."""
    for stage in range(_MOST_STAGES):
        yield from _stage(stage)
        yield f"img_net{stage + 1}.img.0", f"to_rgb.{stage}"


def single_picture_generator(blocks: int) -> Pairs:
    """G_DCGAN: one image after the last stage."""
    for stage in range(_MOST_STAGES):
        yield from _stage(stage)
    for stage in range(_MOST_STAGES):
        yield "img_net.img.0", f"to_rgb.{stage}"


def normalised_discriminator(blocks: int) -> Pairs:
    """AttnGAN's D_NET64, D_NET128 and D_NET256, with batch norms."""
    for layer, (first, norm) in enumerate(((0, None), (2, 3), (5, 6), (8, 9))):
        yield f"img_code_s16.{first}", f"blocks.{layer}.conv"
        if norm is not None:
            yield f"img_code_s16.{norm}", f"blocks.{layer}.norm"
    for layer, name in enumerate(_LATER_LAYERS.get(blocks, ()), 4):
        yield f"{name}.0", f"blocks.{layer}.conv"
        yield f"{name}.1", f"blocks.{layer}.norm"
    yield "UNCOND_DNET.outlogits.0", "real"
    yield "COND_DNET.jointConv.0", "joint.conv"
    yield "COND_DNET.jointConv.1", "joint.norm"
    yield "COND_DNET.outlogits.0", "matching"


def spectral_discriminator(blocks: int) -> Pairs:
    """DM-GAN's D_NET64, D_NET128 and D_NET256, with spectrally normalised convolutions."""
    for layer in range(4):
        yield from _spectral(f"img_code_s16.{2 * layer}", f"blocks.{layer}.conv")
    for layer, name in enumerate(_LATER_LAYERS.get(blocks, ()), 4):
        yield from _spectral(f"{name}.0", f"blocks.{layer}.conv")
    yield "UNCOND_DNET.outlogits.0", "real"
    yield from _spectral("COND_DNET.jointConv.0", "joint.conv")
    yield "COND_DNET.outlogits.0", "matching"


def _stage(stage: int) -> Pairs:
    if stage == 0:
        yield "ca_net.fc", "augmentation.linear"
        yield "h_net1.fc.0", "initial.linear"
        yield "h_net1.fc.1", "initial.norm"
        for block in range(4):
            yield from _upsampling(f"h_net1.upsample{block + 1}", f"initial.doubling.{block}")
        return
    theirs, ours = f"h_net{stage + 1}", f"refining.{stage - 1}"
    for name, own_name in _LOOKING:
        yield f"{theirs}.{name}", f"{ours}.{own_name}"
    for block in range(_MOST_RESIDUALS):
        for number, layer in _RESIDUAL:
            place = f"{theirs}.residual.{block}.block.{number}"
            yield place, f"{ours}.residuals.{block}.{layer}"
    yield from _upsampling(f"{theirs}.upsample", f"{ours}.doubling")


def _upsampling(theirs: str, ours: str) -> Pairs:
    yield f"{theirs}.1", f"{ours}.conv"
    yield f"{theirs}.2", f"{ours}.norm"


def _spectral(theirs: str, ours: str) -> Pairs:
    for name, own_name in _SPECTRAL:
        yield f"{theirs}.module.{name}", f"{ours}.{own_name}"
