"""Which name of the reference implementations belongs to which of ours.

Each function lists pairs (theirs, ours) of modules or single tensors, in the order of their
state dicts, for a network of so many blocks. What a pair names need not exist: a block whose
widths are equal has no shortcut.
"""

from __future__ import annotations

from collections.abc import Iterator

Pairs = Iterator[tuple[str, str]]

_PERCEPTRON = (("linear1", "hidden"), ("linear2", "output"))
_INCEPTION = {
    "early": (
        *("Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", "maxpool1"),
        *("Conv2d_3b_1x1", "Conv2d_4a_3x3", "maxpool2"),
        *("Mixed_5b", "Mixed_5c", "Mixed_5d"),
        *("Mixed_6a", "Mixed_6b", "Mixed_6c", "Mixed_6d", "Mixed_6e"),
    ),
    "late": ("Mixed_7a", "Mixed_7b", "Mixed_7c"),
}


def ssa_generator(blocks: int) -> Pairs:
    """SSA-GAN's NetG: the mask of a block is predicted by the block before it."""
    yield from _mask_predictor("conv_mask", 0)
    yield "fc", "stem"
    for index in range(blocks):
        theirs, ours = f"block{index}", f"blocks.{index}"
        yield from _residual(theirs, ours)
        for affine, norm in (("affine0", "norm1"), ("affine2", "norm2")):
            yield f"{theirs}.{affine}.batch_norm2d", f"{ours}.{norm}.norm"
            yield from _affine(f"{theirs}.{affine}", f"{ours}.{norm}")
        yield f"{theirs}.c_sc", f"{ours}.shortcut"
        if index < blocks - 1:
            yield from _mask_predictor(f"{theirs}.conv_mask", index + 1)
    yield "conv_img.0", "norm"
    yield "conv_img.2", "to_rgb"


def early_df_generator(blocks: int) -> Pairs:
    """DF-GAN's NetG in its first version."""
    yield "fc", "stem"
    for index in range(blocks):
        theirs, ours = f"block{index}", f"blocks.{index}"
        yield from _residual(theirs, ours)
        for number in range(4):
            place = f"{ours}.fusion{1 + number // 2}.affine{1 + number % 2}"
            yield from _affine(f"{theirs}.affine{number}", place)
        yield f"{theirs}.c_sc", f"{ours}.shortcut"
    yield "conv_img.1", "to_rgb"


def df_generator(blocks: int) -> Pairs:
    """DF-GAN's NetG of the CVPR 2022 version."""
    yield "fc", "stem"
    for index in range(blocks):
        theirs, ours = f"GBlocks.{index}", f"blocks.{index}"
        yield f"{theirs}.c1", f"{ours}.conv1"
        yield f"{theirs}.c2", f"{ours}.conv2"
        for fusion in (1, 2):
            for affine in (0, 1):
                place = f"{ours}.fusion{fusion}.affine{affine + 1}"
                yield from _affine(f"{theirs}.fuse{fusion}.affine{affine}", place)
        yield f"{theirs}.c_sc", f"{ours}.shortcut"
    yield "to_rgb.1", "to_rgb"


def matching_discriminator(blocks: int) -> Pairs:
    """NetD of SSA-GAN and of DF-GAN's first version, with its head."""
    yield from _discriminator("block", blocks)
    yield from _head("COND_DNET.")


def df_discriminator(blocks: int) -> Pairs:
    """DF-GAN's NetD of the CVPR 2022 version, without a head."""
    yield from _discriminator("DBlocks.", blocks)


def df_head(blocks: int) -> Pairs:
    """DF-GAN's NetC of the CVPR 2022 version."""
    yield from _head("")


def text_encoder(blocks: int) -> Pairs:
    """AttnGAN's RNN_ENCODER."""
    yield "encoder", "embedding"
    yield "rnn", "lstm"


def image_encoder(blocks: int) -> Pairs:
    """AttnGAN's CNN_ENCODER: torchvision's Inception-v3 by name, and two projections."""
    for half, names in _INCEPTION.items():
        for place, name in enumerate(names):
            yield name, f"trunk.{half}.{place}"
    yield "emb_features", "heads.regions"
    yield "emb_cnn_code", "heads.code"


def _residual(theirs: str, ours: str) -> Pairs:
    yield f"{theirs}.gamma", f"{ours}.scale"
    yield f"{theirs}.c1", f"{ours}.conv1"
    yield f"{theirs}.c2", f"{ours}.conv2"


def _affine(theirs: str, ours: str) -> Pairs:
    for name in ("gamma", "beta"):
        for layer, own_layer in _PERCEPTRON:
            yield f"{theirs}.fc_{name}.{layer}", f"{ours}.{name}.{own_layer}"


def _mask_predictor(theirs: str, block: int) -> Pairs:
    for number, name in ((0, "features"), (1, "norm"), (3, "logits")):
        yield f"{theirs}.{number}", f"mask_predictors.{block}.{name}"


def _discriminator(block: str, blocks: int) -> Pairs:
    yield "conv_img", "from_rgb"
    for index in range(blocks):
        theirs, ours = f"{block}{index}", f"blocks.{index}"
        yield f"{theirs}.gamma", f"{ours}.scale"
        yield f"{theirs}.conv_r.0", f"{ours}.conv1"
        yield f"{theirs}.conv_r.2", f"{ours}.conv2"
        yield f"{theirs}.conv_s", f"{ours}.shortcut"


def _head(theirs: str) -> Pairs:
    yield f"{theirs}joint_conv.0", "joint"
    yield f"{theirs}joint_conv.2", "logit"
