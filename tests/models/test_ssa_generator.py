"""SSA-GAN's generator: shapes, published sizes, initial values, masks."""

from __future__ import annotations

import pytest
import torch

from t2i_hpc.models.ssa_generator import SSAGenerator, plan_blocks
from tests.support.networks import parameter_count


def test_the_published_generator_has_its_published_size() -> None:
    assert parameter_count(SSAGenerator()) == 29_494_273
    assert parameter_count(SSAGenerator(width=32)) == 10_327_425


@pytest.mark.parametrize("resolution", [64, 128, 256])
@pytest.mark.parametrize("mask_source", ["code", "paper"])
def test_images_and_masks_have_their_sizes(resolution: int, mask_source: str) -> None:
    generator = SSAGenerator(resolution, width=2, mask_width=4, mask_source=mask_source)
    generator.requires_grad_(False)
    generated = generator(torch.randn(2, 100), torch.randn(2, 256))
    assert generated.images[-1].shape == (2, 3, resolution, resolution)
    assert generated.images[-1].abs().max() <= 1
    sides = [mask.shape[-1] for mask in generated.masks]
    assert sides == [4 * 2**level for level in range(len(sides))]
    assert sides[-1] == resolution
    for mask in generated.masks:
        assert mask.shape[:2] == (2, 1)
        assert 0 <= float(mask.min()) <= float(mask.max()) <= 1


@pytest.mark.parametrize(
    ("resolution", "blocks", "widths", "upsamplings"),
    [
        (256, None, (8, 8, 8, 8, 4, 2, 1), (1, 2, 2, 2, 2, 2, 2)),
        (64, None, (8, 8, 4, 2, 1), (1, 2, 2, 2, 2)),
        (256, 3, (8, 2, 1), (1, 8, 8)),
        (128, 4, (8, 4, 2, 1), (1, 4, 4, 2)),
    ],
)
def test_blocks_reach_the_resolution(
    resolution: int, blocks: int | None, widths: tuple[int, ...], upsamplings: tuple[int, ...]
) -> None:
    plan = plan_blocks(resolution, blocks)
    assert (plan.widths, plan.upsamplings) == (widths, upsamplings)


@pytest.mark.parametrize("blocks", [1, 6])
def test_blocks_that_do_not_fit_are_refused(blocks: int) -> None:
    with pytest.raises(ValueError, match="do not fit"):
        plan_blocks(64, blocks)


@pytest.mark.parametrize("masks", [0, 1, 3, 5])
def test_masks_are_counted_from_the_last_block_backwards(masks: int) -> None:
    generator = SSAGenerator(64, width=2, masks=masks, mask_width=4)
    generated = generator(torch.randn(1, 100), torch.randn(1, 256))
    sides = [mask.shape[-1] for mask in generated.masks]
    assert sides == [4, 8, 16, 32, 64][5 - masks :]


def test_more_masks_than_blocks_are_refused() -> None:
    with pytest.raises(ValueError, match="masks"):
        SSAGenerator(64, width=2, masks=6)


@pytest.mark.parametrize("mask_source", ["code", "paper"])
def test_masks_are_predicted_before_or_after_enlargement(mask_source: str) -> None:
    generator = SSAGenerator(64, width=2, mask_width=4, mask_source=mask_source).eval()
    seen: list[int] = []
    for predictor in generator.mask_predictors.values():
        predictor.register_forward_pre_hook(lambda _, given: seen.append(given[0].shape[-1]))
    masks = generator(torch.randn(1, 100), torch.randn(1, 256)).masks
    assert seen == ([4, 4, 8, 16, 32] if mask_source == "code" else [4, 8, 16, 32, 64])
    assert [mask.shape[-1] for mask in masks] == [4, 8, 16, 32, 64]


@pytest.mark.parametrize(("mask_source", "modulation"), [("paper", "code"), ("code", "paper")])
def test_options_change_the_image_but_not_the_weights(mask_source: str, modulation: str) -> None:
    default = SSAGenerator(64, width=2, mask_width=4).eval()
    for parameter in default.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    other = SSAGenerator(64, width=2, mask_width=4, mask_source=mask_source, modulation=modulation)
    other.eval().load_state_dict(default.state_dict())
    noise, sentence = torch.randn(1, 100), torch.randn(1, 256)
    images = [network(noise, sentence).images[-1] for network in (default, other)]
    assert not torch.allclose(images[0], images[1], atol=1e-3)


def test_before_training_the_text_changes_nothing() -> None:
    """Residual scales and the affine layers start at zero, as in the released code."""
    generator = SSAGenerator(64, width=2, mask_width=4).eval()
    noise = torch.randn(2, 100)
    first = generator(noise, torch.randn(2, 256)).images[-1]
    assert torch.equal(first, generator(noise, torch.randn(2, 256)).images[-1])


def test_after_training_text_and_mask_matter() -> None:
    generator = SSAGenerator(64, width=2, mask_width=4).eval()
    for parameter in generator.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    noise, sentence = torch.randn(1, 100), torch.randn(1, 256)
    image = generator(noise, sentence).images[-1]
    assert not torch.allclose(image, generator(noise, -sentence).images[-1], atol=1e-3)


def test_initial_values_are_the_references() -> None:
    generator = SSAGenerator(64, width=2, mask_width=4)
    zero = ("scale", "output.weight", "output.bias")
    for name, parameter in generator.blocks.named_parameters():
        assert bool((parameter == 0).all()) == name.endswith(zero), name
