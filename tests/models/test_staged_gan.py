"""Stages and their discriminators: sizes, padding, conditions, spectral norms, gradients."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor, nn

from t2i_hpc.models import staged_generator as word_attention
from t2i_hpc.models.staged_discriminator import SpectralConv2d, StagedDiscriminator
from t2i_hpc.models.staged_generator import (
    ConditioningAugmentation,
    SingleImageGenerator,
    StagedGenerator,
    StagedImages,
    hidden_words,
    initialize,
)
from tests.support.networks import parameter_count

ATTN = ("initial", "attention", "attention")
DM = ("initial", "memory", "memory")
LENGTHS = (2, 5)


def small(stages: tuple[str, ...], seed: int = 0) -> StagedGenerator:
    torch.manual_seed(seed)
    generator = StagedGenerator(stages, 64, width=4, sentence_width=6, condition_width=5)
    initialize(generator)
    return generator


def inputs() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    draw = torch.Generator().manual_seed(1)
    noise, sentence = torch.randn(2, 100, generator=draw), torch.randn(2, 6, generator=draw)
    mask = torch.arange(7) >= torch.tensor(LENGTHS)[:, None]
    return noise, sentence, torch.randn(2, 6, 7, generator=draw), mask


def test_published_sizes() -> None:
    """Of the names and shapes of CUB's AttnGAN and DM-GAN: tests/convert."""
    with torch.device("meta"):
        hybrid = [StagedGenerator(("initial", *two), width=64) for two in hybrids()]
        assert [parameter_count(network) for network in hybrid] == [21_407_249] * 2
        assert parameter_count(StagedGenerator(ATTN, width=48, residuals=3)) == 13_811_456
        assert parameter_count(StagedGenerator(DM, width=64, residuals=3)) == 22_335_314
        assert parameter_count(SingleImageGenerator(ATTN, residuals=0)) == 6_638_960
        assert parameter_count(StagedDiscriminator(256, unconditional=False)) == 71_850_753
        on_coco = [StagedDiscriminator(side, 96) for side in (64, 128, 256)]
    assert round(sum(map(parameter_count, on_coco)) / 1e6, 1) == 216.9


def hybrids() -> list[tuple[str, ...]]:
    return [two for two in itertools.product(("attention", "memory"), repeat=2) if len({*two}) == 2]


@pytest.mark.parametrize("stages", [ATTN, DM, *(("initial", *two) for two in hybrids())])
def test_images_and_attention(stages: tuple[str, ...]) -> None:
    generated = small(stages).eval()(*inputs())
    assert [image.shape for image in generated.images] == [(2, 3, s, s) for s in (16, 32, 64)]
    assert [maps.shape for maps in generated.attention] == [(2, 7, s, s) for s in (16, 32)]
    for maps in generated.attention:
        torch.testing.assert_close(maps.sum(1), torch.ones_like(maps[:, 0]))
        for own, length in zip(maps, LENGTHS, strict=True):
            assert own[:length].amin() > 0
            assert not own[length:].any()


@pytest.mark.parametrize("stages", [ATTN, DM])
def test_padding_words_change_nothing_and_words_do(stages: tuple[str, ...]) -> None:
    generator = small(stages).eval()
    noise, sentence, words, mask = inputs()
    generated = generator(noise, sentence, words, mask).images[-1]
    padded = words + torch.randn_like(words) * mask[:, None]
    assert torch.equal(generator(noise, sentence, padded, mask).images[-1], generated)
    cut = generator(noise, sentence, words[:, :, :5], mask[:, :5]).images[-1]
    torch.testing.assert_close(cut, generated)
    other = words + torch.randn_like(words) * ~mask[:, None]
    assert not torch.allclose(generator(noise, sentence, other, mask).images[-1], generated)


def test_the_released_order_of_masks() -> None:
    """Row b·q + k has the mask of sample (b·q + k) modulo the batch, as the spec describes it."""
    mask = inputs()[-1]
    hidden = hidden_words(mask, 9, reference=True, training=False)
    assert hidden.shape == (2, 9, 7)
    tiled = mask.repeat(9, 1).view(2, 9, 7)  # the whole (B, T), once for each position
    assert torch.equal(hidden, tiled)
    noise, sentence, words, _ = inputs()
    generator = small(ATTN).eval()
    generator.reference_mask = True
    first = generator(noise, sentence, words, mask).attention[0].flatten(2)[0]
    assert not first[LENGTHS[0] :, ::2].any()
    assert bool((first[LENGTHS[0] : LENGTHS[1], 1::2] > 0).all())


def test_the_released_order_counts_through_all_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three ranks of one sample, each as it would see itself: the rows of the whole batch."""
    mask = torch.arange(7) >= torch.tensor([[2], [5], [3]])
    whole = hidden_words(mask, 4, reference=True, training=False)
    monkeypatch.setattr(word_attention, "gather_rows", lambda own: mask.float())
    for place in range(3):
        monkeypatch.setattr(word_attention, "rank", lambda place=place: place)
        own = hidden_words(mask[place : place + 1], 4, reference=True, training=True)
        assert torch.equal(own, whole[place : place + 1])


def test_conditions() -> None:
    augmentation = ConditioningAugmentation(6, 5)
    sentence, noise = torch.randn(3, 6), torch.randn(3, 5)
    generated, mean, log_variance = augmentation(sentence, noise)
    torch.testing.assert_close(generated, mean + (log_variance / 2).exp() * noise)
    assert not torch.equal(augmentation(sentence).value, augmentation(sentence).value)
    assert torch.equal(augmentation.eval()(sentence).value, mean)
    torch.testing.assert_close(augmentation(sentence, noise).value, generated)


@pytest.mark.parametrize("stages", [ATTN, DM])
def test_every_parameter_of_the_generator_gets_a_gradient(stages: tuple[str, ...]) -> None:
    generator = small(stages).train()
    generated: StagedImages = generator(*inputs())
    torch.stack([(i * torch.randn_like(i)).sum() for i in generated.images]).sum().backward()
    for name, parameter in generator.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.any(), name


def test_no_gradient_goes_from_the_memorys_gate_into_the_image() -> None:
    stage = small(DM).refining[0]
    features = torch.randn(2, 4, 8, 8, requires_grad=True)
    written = stage.write(features, torch.randn(2, 6, 7))  # type: ignore[operator]
    written.sum().backward()
    assert features.grad is None


@pytest.mark.parametrize("norm", ["batch", "spectral"])
@pytest.mark.parametrize("side", [16, 64, 128])
def test_discriminators(norm: str, side: int) -> None:
    network = StagedDiscriminator(side, 3, 6, norm=norm)
    initialize(network)
    image, sentence = torch.randn(4, 3, side, side), torch.randn(4, 6)
    assert network.features(image).shape == (4, 24 if side > 16 else 6, 4, 4)
    matching, real = network(image, sentence)
    assert real is not None
    assert matching.shape == real.shape == (4,)
    (matching * torch.randn(4) + real * torch.randn(4)).sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in network.parameters())
    assert (
        StagedDiscriminator(side, 3, 6, unconditional=False)(image, sentence).unconditional is None
    )


def test_a_spectral_norm_becomes_one_by_iteration() -> None:
    torch.manual_seed(0)
    conv = SpectralConv2d(3, 5, 4, 2, 1)
    features = torch.randn(1, 3, 8, 8)
    for _ in range(60):
        conv(features)
    expected = conv.weight / torch.linalg.matrix_norm(conv.weight.flatten(1), 2)
    torch.testing.assert_close(conv.normalized(), expected, rtol=1e-3, atol=1e-5)


def test_an_evaluation_leaves_the_estimate_as_it_is() -> None:
    conv = SpectralConv2d(3, 5, 4, 2, 1).eval()
    before = conv.left.clone()
    first = conv(torch.ones(1, 3, 8, 8))
    assert torch.equal(conv.left, before)
    assert torch.equal(conv.train()(torch.ones(1, 3, 8, 8)), first)
    assert not torch.equal(conv.left, before)


def test_two_forwards_before_a_backward() -> None:
    """The estimate moves in place with each; gradients need the one of their forward."""
    conv = SpectralConv2d(3, 5, 4, 2, 1)
    total = conv(torch.ones(1, 3, 8, 8)).sum() + conv(torch.ones(1, 3, 8, 8)).sum()
    total.backward()
    assert conv.weight.grad is not None


def test_first_weights() -> None:
    generator = small(DM)
    linear = generator.initial.linear.weight
    torch.testing.assert_close(linear.t() @ linear, torch.eye(105), atol=1e-4, rtol=0)
    norms = [m.weight for m in generator.modules() if isinstance(m, nn.BatchNorm2d)]
    assert 0.01 < torch.cat([norm.detach() for norm in norms]).std() < 0.03
    assert not generator.augmentation.linear.bias.any()


@pytest.mark.parametrize(
    ("stages", "resolution", "reason"),
    [
        (("attention",), 64, "begin with 'initial'"),
        (("initial", "initial"), 64, "have it once"),
        ((), 64, "begin with"),
        (ATTN, 32, "8 px at 32 px"),
    ],
)
def test_stages_that_do_not_fit(stages: tuple[str, ...], resolution: int, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        StagedGenerator(stages, resolution)
