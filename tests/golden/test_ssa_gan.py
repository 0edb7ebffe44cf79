"""SSA-GAN's generator and discriminator against the released code."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from t2i_hpc.losses.gradient_penalty import matching_aware_gradient_penalty
from t2i_hpc.models import GeneratedImages
from t2i_hpc.models.discriminator import MatchingDiscriminator
from tests.golden.case import NORM, Case, case, names

DEAD = ("block4", "block5")


@pytest.fixture
def golden() -> Case:
    torch.set_num_threads(1)
    return case("ssagan_ngf4")


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_generator_image_masks_and_statistics(golden: Case, mode: str) -> None:
    generator = golden.network("ssa_gan", "generator", "G").train(mode == "train")
    generated: GeneratedImages = generator(golden.input("z", 100), golden.input("c", 256))
    golden.check(f"G.{mode}.image", generated.images[-1])
    assert len(generated.masks) == 7
    for index, mask in enumerate(generated.masks):
        golden.check(f"G.{mode}.mask{index}", mask)
    if mode == "train":
        moved = generator.state_dict()
        for theirs, ours in (
            ("block0.affine0.batch_norm2d", "blocks.0.norm1.norm"),
            ("conv_img.0", "norm"),
        ):
            for kind in ("running_mean", "running_var"):
                golden.check(f"G.train.{theirs}.{kind}", moved[f"{ours}.{kind}"])


def test_discriminator_features_and_logits(golden: Case) -> None:
    discriminator = golden.network("ssa_gan", "discriminator", "D")
    assert isinstance(discriminator, MatchingDiscriminator)
    image, sentence = golden.images(), golden.input("c", 256)
    golden.check("D.features", discriminator.features(image))
    logits = discriminator(image, sentence)
    assert logits.shape == (3,)
    golden.check("D.logit", logits.view(3, 1, 1, 1))


def test_gradient_penalty_and_its_gradients(golden: Case) -> None:
    """In float64: in float32 rounding moves activations over kinks, the reference's as ours."""
    discriminator = golden.network("ssa_gan", "discriminator", "D").double()
    assert isinstance(discriminator, MatchingDiscriminator)
    image, sentence = golden.images().double(), golden.input("c", 256).double()
    penalty = 2 * matching_aware_gradient_penalty(discriminator, image, sentence).penalty
    assert penalty.item() == pytest.approx(float(golden.values["MAGP.penalty"]), rel=NORM)
    penalty.backward()
    gradients = {name: p.grad for name, p in discriminator.named_parameters()}
    for theirs, ours in names("ssa_gan", "discriminator", discriminator):
        stored = float(golden.values[f"MAGP.grad_l2.{theirs}"])
        found = None if ours is None else gradients[ours]
        if theirs.split(".conv_s")[0] in DEAD and ours is None:
            assert np.isnan(stored), theirs
        else:
            norm = 0.0 if found is None else found.norm().item()
            assert norm == pytest.approx(stored, rel=NORM), theirs


def test_norm_of_the_gradient_by_image_and_sentence(golden: Case) -> None:
    discriminator = golden.network("ssa_gan", "discriminator", "D")
    leaves = [golden.images().requires_grad_(), golden.input("c", 256).requires_grad_()]
    gradients = torch.autograd.grad(discriminator(*leaves).sum(), leaves)
    norm = torch.cat([gradient.flatten(1) for gradient in gradients], 1).norm(dim=1)
    golden.check("MAGP.grad_norm", norm)
