"""Tensor names of the reference implementations beside ours: one list of patterns a network.

A pattern is their name and ours, of a module or of a single tensor; a list stands in the order of
their state dict. Braces hold alternatives, which correspond one to one. Neighboring patterns with
``{i}`` are repeated for each block; ``{i+1}`` is the next number. What a pattern names need not
exist: a block whose widths are equal has no shortcut, a generator of one stage no second.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import cache
from itertools import groupby, product

MOST_BLOCKS = 12
THEIRS, OURS = 0, 1  # places in a pattern

Patterns = tuple[tuple[str, str], ...]

# The mask of a block is predicted by the block before it.
SSA_GENERATOR: Patterns = (
    ("conv_mask.{0,1,3}", "mask_predictors.0.{features,norm,logits}"),
    ("fc", "stem"),
    ("block{i}.gamma", "blocks.{i}.scale"),
    ("block{i}.c{1,2}", "blocks.{i}.conv{1,2}"),
    ("block{i}.affine0.batch_norm2d", "blocks.{i}.norm1.norm"),
    ("block{i}.affine0.fc_gamma.linear{1,2}", "blocks.{i}.norm1.gamma.{hidden,output}"),
    ("block{i}.affine0.fc_beta.linear{1,2}", "blocks.{i}.norm1.beta.{hidden,output}"),
    ("block{i}.affine2.batch_norm2d", "blocks.{i}.norm2.norm"),
    ("block{i}.affine2.fc_gamma.linear{1,2}", "blocks.{i}.norm2.gamma.{hidden,output}"),
    ("block{i}.affine2.fc_beta.linear{1,2}", "blocks.{i}.norm2.beta.{hidden,output}"),
    ("block{i}.c_sc", "blocks.{i}.shortcut"),
    ("block{i}.conv_mask.{0,1,3}", "mask_predictors.{i+1}.{features,norm,logits}"),
    ("conv_img.{0,2}", "{norm,to_rgb}"),
)
# DF-GAN's first version.
EARLY_DF_GENERATOR: Patterns = (
    ("fc", "stem"),
    ("block{i}.gamma", "blocks.{i}.scale"),
    ("block{i}.c{1,2}", "blocks.{i}.conv{1,2}"),
    (
        "block{i}.affine{0,1}.fc_{gamma,beta}.linear{1,2}",
        "blocks.{i}.fusion1.affine{1,2}.{gamma,beta}.{hidden,output}",
    ),
    (
        "block{i}.affine{2,3}.fc_{gamma,beta}.linear{1,2}",
        "blocks.{i}.fusion2.affine{1,2}.{gamma,beta}.{hidden,output}",
    ),
    ("block{i}.c_sc", "blocks.{i}.shortcut"),
    ("conv_img.1", "to_rgb"),
)
# DF-GAN's version of CVPR 2022.
DF_GENERATOR: Patterns = (
    ("fc", "stem"),
    ("GBlocks.{i}.c{1,2}", "blocks.{i}.conv{1,2}"),
    (
        "GBlocks.{i}.fuse{1,2}.affine{0,1}.fc_{gamma,beta}.linear{1,2}",
        "blocks.{i}.fusion{1,2}.affine{1,2}.{gamma,beta}.{hidden,output}",
    ),
    ("GBlocks.{i}.c_sc", "blocks.{i}.shortcut"),
    ("to_rgb.1", "to_rgb"),
)
# Each block carries the one recurrence again, and layers that no output depends on: see CARRIED.
CARRIED = "carried"
RAT_GENERATOR: Patterns = (
    ("lstm.{W,U,bias}", "recurrence.{input,hidden,bias}"),
    ("lstm.noise2{h,c}", "recurrence.start_{hidden,cell}"),
    ("fc", "stem"),
    ("block{i}.gamma", "blocks.{i}.scale"),
    ("block{i}.lstm.{W,U,bias}", f"blocks.{{i}}.{CARRIED}.recurrence.{{input,hidden,bias}}"),
    ("block{i}.lstm.noise2{h,c}", f"blocks.{{i}}.{CARRIED}.recurrence.start_{{hidden,cell}}"),
    ("block{i}.c{1,2}", "blocks.{i}.conv{1,2}"),
    (
        "block{i}.affine{0,1}.fc_{gamma,beta}.linear{1,2}",
        "blocks.{i}.fusion1.affine{1,2}.{gamma,beta}.{hidden,output}",
    ),
    (
        "block{i}.affine4.fc_{gamma,beta}.linear{1,2}",
        f"blocks.{{i}}.{CARRIED}.fusion1.{{gamma,beta}}.{{hidden,output}}",
    ),
    (
        "block{i}.affine{2,3}.fc_{gamma,beta}.linear{1,2}",
        "blocks.{i}.fusion2.affine{1,2}.{gamma,beta}.{hidden,output}",
    ),
    (
        "block{i}.affine5.fc_{gamma,beta}.linear{1,2}",
        f"blocks.{{i}}.{CARRIED}.fusion2.{{gamma,beta}}.{{hidden,output}}",
    ),
    ("block{i}.fea_{l,ll}", f"blocks.{{i}}.{CARRIED}.{{before,after}}"),
    ("block{i}.c_sc", "blocks.{i}.shortcut"),
    ("conv_img.1", "to_rgb"),
)
# SSA-GAN's, and that of DF-GAN's first version. See DEAD on conv_s.
MATCHING_DISCRIMINATOR: Patterns = (
    ("conv_img", "from_rgb"),
    ("block{i}.gamma", "blocks.{i}.scale"),
    ("block{i}.conv_r.{0,2}", "blocks.{i}.conv{1,2}"),
    ("block{i}.conv_s", "blocks.{i}.shortcut"),
    ("COND_DNET.joint_conv.{0,2}", "{joint,logit}"),
)
DF_DISCRIMINATOR: Patterns = (
    ("conv_img", "from_rgb"),
    ("DBlocks.{i}.gamma", "blocks.{i}.scale"),
    ("DBlocks.{i}.conv_r.{0,2}", "blocks.{i}.conv{1,2}"),
    ("DBlocks.{i}.conv_s", "blocks.{i}.shortcut"),
)
DF_HEAD: Patterns = (("joint_conv.{0,2}", "{joint,logit}"),)
# GALIP's. Its generator's files hold the frozen CLIP as well, which comes from its own folder here.
FROZEN_CLIP = "mapping.CLIP_ViT."
CLIP_GENERATOR: Patterns = (
    ("fc_code", "stem"),
    ("mapping.FBlocks.{i}.conv1", "bridge.{i}.conv1"),
    (
        "mapping.FBlocks.{i}.fuse1.affine{0,1}.fc_{gamma,beta}.linear{1,2}",
        "bridge.{i}.fusion1.affine{1,2}.{gamma,beta}.{hidden,output}",
    ),
    ("mapping.FBlocks.{i}.conv2", "bridge.{i}.conv2"),
    (
        "mapping.FBlocks.{i}.fuse2.affine{0,1}.fc_{gamma,beta}.linear{1,2}",
        "bridge.{i}.fusion2.affine{1,2}.{gamma,beta}.{hidden,output}",
    ),
    ("mapping.{conv_fuse,conv,fc_prompt}", "{to_vision,from_vision,prompt}"),
    *DF_GENERATOR[1:],
)
CLIP_TRUNK: Patterns = (
    ("DBlocks.{i}.{gamma,beta}", "blocks.{i}.{scale,level_scale}"),
    ("DBlocks.{i}.conv_r.{0,2}", "blocks.{i}.conv{1,2}"),
    ("DBlocks.{i}.conv_s", "blocks.{i}.shortcut"),
    ("main.gamma", "last.scale"),
    ("main.conv_r.{0,2}", "last.conv{1,2}"),
    ("main.conv_s", "last.shortcut"),
)
# The reference's discriminators carry this 1×1 convolution in every block, ours only in those
# whose widths differ; elsewhere no output depends on it.
DEAD = "conv_s"

# AttnGAN and DM-GAN number stages from 1, ours are the initial one and refining ones from 0.
_STAGES: Patterns = (
    ("h_net{i+2}.att.conv_context", "refining.{i}.context"),
    ("h_net{i+2}.{A,B}", "refining.{i}.{word_gate,image_gate}"),
    ("h_net{i+2}.{M_r,M_w}.0", "refining.{i}.{write_image,write_words}"),
    ("h_net{i+2}.{key,value,response_gate}.0", "refining.{i}.{key,value,response}"),
    (
        "h_net{i+2}.residual.{0,1,2,3,4,5,6,7}.block.{0,1,3,4}",
        "refining.{i}.residuals.{0,1,2,3,4,5,6,7}.{conv1,norm1,conv2,norm2}",
    ),
    ("h_net{i+2}.upsample.{1,2}", "refining.{i}.doubling.{conv,norm}"),
)
_INITIAL_STAGE: Patterns = (
    ("ca_net.fc", "augmentation.linear"),
    ("h_net1.fc.{0,1}", "initial.{linear,norm}"),
    ("h_net1.upsample{1,2,3,4}.{1,2}", "initial.doubling.{0,1,2,3}.{conv,norm}"),
)
# G_NET: an image after each stage.
STAGED_GENERATOR: Patterns = (
    *_INITIAL_STAGE,
    ("img_net1.img.0", "to_rgb.0"),
    *_STAGES,
    ("img_net{i+2}.img.0", "to_rgb.{i+1}"),
)
# G_DCGAN: one image after the last stage.
SINGLE_IMAGE_GENERATOR: Patterns = (*_INITIAL_STAGE, *_STAGES, ("img_net.img.0", "to_rgb.{i}"))

# Of discriminators by the side of their images: what follows on the four layers of img_code_s16.
_LATER_LAYERS: dict[int, Patterns] = {
    64: (),
    128: (("img_code_s{32,32_1}", "blocks.{4,5}"),),
    256: (("img_code_s{32,64,64_1,64_2}", "blocks.{4,5,6,7}"),),
}


def attn_discriminator(resolution: int) -> Patterns:
    """AttnGAN's D_NET64, D_NET128 or D_NET256, with batch norms."""
    return (
        ("img_code_s16.0", "blocks.0.conv"),
        ("img_code_s16.{2,3}", "blocks.1.{conv,norm}"),
        ("img_code_s16.{5,6}", "blocks.2.{conv,norm}"),
        ("img_code_s16.{8,9}", "blocks.3.{conv,norm}"),
        *((theirs + ".{0,1}", ours + ".{conv,norm}") for theirs, ours in _LATER_LAYERS[resolution]),
        ("UNCOND_DNET.outlogits.0", "real"),
        ("COND_DNET.jointConv.{0,1}", "joint.{conv,norm}"),
        ("COND_DNET.outlogits.0", "matching"),
    )


def dm_discriminator(resolution: int) -> Patterns:
    """DM-GAN's D_NET64, D_NET128 or D_NET256, with spectrally normalized convolutions."""
    convolutions = (
        ("img_code_s16.{0,2,4,6}", "blocks.{0,1,2,3}"),
        *((theirs + ".0", ours) for theirs, ours in _LATER_LAYERS[resolution]),
    )
    return (
        *(_spectral(theirs, ours) for theirs, ours in convolutions),
        ("UNCOND_DNET.outlogits.0", "real"),
        _spectral("COND_DNET.jointConv.0", "joint"),
        ("COND_DNET.outlogits.0", "matching"),
    )


def _spectral(theirs: str, ours: str) -> tuple[str, str]:
    return (
        theirs + ".module.{bias,weight_u,weight_v,weight_bar}",
        ours + ".conv.{bias,left,right,weight}",
    )


# AttnGAN's RNN_ENCODER.
TEXT_ENCODER: Patterns = (("{encoder,rnn}", "{embedding,lstm}"),)
# AttnGAN's CNN_ENCODER: torchvision's Inception-v3, whose layers ours numbers, and two projections.
IMAGE_ENCODER: Patterns = (
    ("Conv2d_{1a,2a,2b}_3x3", "trunk.early.{0,1,2}"),
    ("{Conv2d_3b_1x1,Conv2d_4a_3x3}", "trunk.early.{4,5}"),
    ("Mixed_5{b,c,d}", "trunk.early.{7,8,9}"),
    ("Mixed_6{a,b,c,d,e}", "trunk.early.{10,11,12,13,14}"),
    ("Mixed_7{a,b,c}", "trunk.late.{0,1,2}"),
    ("{emb_features,emb_cnn_code}", "heads.{regions,code}"),
)


def reference_names(patterns: Patterns, names: Iterable[str], side: int = OURS) -> dict[str, str]:
    """Return the given names by the reference's, in the reference's order.

    Args:
        patterns: of one network.
        names: of tensors: ours, or theirs with ``side=THEIRS``; those of no pattern are left out.
    """
    pairs = _expanded(patterns)
    inside: dict[str, list[str]] = {pair[side]: [] for pair in pairs}
    for name in names:
        stem = name
        while stem and stem not in inside:
            stem = stem.rpartition(".")[0]
        if stem:
            inside[stem].append(name)
    return {
        pair[THEIRS] + name.removeprefix(pair[side]): name
        for pair in pairs
        for name in inside[pair[side]]
    }


@cache
def _expanded(patterns: Patterns) -> Patterns:
    pairs: list[tuple[str, str]] = []
    for repeated, group in groupby(patterns, lambda pattern: "{i" in "".join(pattern)):
        block = tuple(group)
        for number in range(MOST_BLOCKS if repeated else 1):
            for theirs, ours in block:
                pairs += zip(_names(theirs, number), _names(ours, number), strict=True)
    return tuple(pairs)


def _names(pattern: str, number: int) -> Sequence[str]:
    numbered = re.sub(r"\{i(?:\+(\d))?\}", lambda m: str(number + int(m[1] or 0)), pattern)
    pieces = re.split(r"\{(.*?)\}", numbered)  # every second one stood in braces
    choices = [p.split(",") if place % 2 else [p] for place, p in enumerate(pieces)]
    return ["".join(chosen) for chosen in product(*choices)]
