"""DAMSM's losses against the definition, written with loops."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from t2i_hpc.losses.damsm import (
    Captions,
    DAMSMSettings,
    contrastive,
    damsm_losses,
    sentence_scores,
    word_attention,
    word_scores,
)

B, D, R, T = 3, 4, 6, 5
LENGTHS = torch.tensor([5, 2, 3])


def made(*shape: int) -> Tensor:
    return torch.randn(
        *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(sum(shape))
    )


def plain_word_score(regions: Tensor, words: Tensor, gamma1: float, gamma2: float) -> float:
    """One image (D, R) and one caption (D, t): AttnGAN §3.2 step by step."""
    similarity = regions.t() @ words
    competing = similarity.softmax(dim=1)
    attention = (gamma1 * competing).softmax(dim=0)
    total = 0.0
    for t in range(words.shape[1]):
        context = (attention[:, t] * regions).sum(1)
        total += math.exp(gamma2 * float(F.cosine_similarity(context, words[:, t], dim=0)))
    return math.log(total)


def test_word_scores_equal_the_definition() -> None:
    regions, words = made(B, D, R), made(B, D, T)
    scores = word_scores(regions, words, LENGTHS, DAMSMSettings())
    for image in range(B):
        for caption in range(B):
            expected = plain_word_score(
                regions[image], words[caption, :, : LENGTHS[caption]], 5.0, 5.0
            )
            assert math.isclose(float(scores[image, caption]), expected, rel_tol=1e-9)


def test_sentence_scores_are_cosines() -> None:
    code, sentence = made(B, D), made(B + 1, D)
    expected = F.cosine_similarity(code[:, None], sentence[None], dim=2)
    assert torch.allclose(sentence_scores(code, sentence), expected)


def test_attention_sums_to_one_over_regions() -> None:
    valid = torch.arange(T) < LENGTHS[:, None]
    attention = word_attention(made(B, D, R), made(B, D, T), valid, 4.0)
    assert attention.shape == (B, B, R, T)
    assert torch.allclose(attention.sum(2), torch.ones(B, B, T, dtype=torch.float64))


def test_pairs_of_one_class_do_not_count() -> None:
    scores = made(3, 3)
    rows, columns = contrastive(scores, torch.tensor([7, 7, 8]))
    kept = scores.clone()
    kept[0, 1] = kept[1, 0] = float("-inf")
    target = torch.arange(3)
    assert torch.allclose(rows, F.cross_entropy(kept, target))
    assert torch.allclose(columns, F.cross_entropy(kept.t(), target))


def test_padding_changes_neither_losses_nor_gradients() -> None:
    regions, code = made(B, D, 2, 3).requires_grad_(), made(B, D).requires_grad_()
    words, sentence = made(B, D, T), made(B, D)

    def gradient(longer: int) -> tuple[Tensor, Tensor]:
        padded = F.pad(words * (torch.arange(T) < LENGTHS[:, None])[:, None], (0, longer))
        captions = Captions(padded, LENGTHS, sentence, torch.arange(B))
        loss = sum(damsm_losses(regions, code, captions, DAMSMSettings()).values())
        assert isinstance(loss, Tensor)
        return loss, torch.autograd.grad(loss, regions)[0]

    short, longer = gradient(0), gradient(4)
    assert torch.allclose(short[0], longer[0])
    assert torch.allclose(short[1], longer[1])
    assert bool(longer[1].isfinite().all())


def test_matching_pairs_lower_the_losses() -> None:
    sentence = made(B, D)
    words = sentence[:, :, None].expand(B, D, T)
    captions = Captions(words, LENGTHS, sentence, torch.arange(B))
    right = damsm_losses(
        sentence[:, :, None, None].expand(B, D, 2, 2), sentence, captions, DAMSMSettings()
    )
    turned = sentence.roll(1, 0)
    wrong = damsm_losses(
        turned[:, :, None, None].expand(B, D, 2, 2), turned, captions, DAMSMSettings()
    )
    for name in right:
        assert float(right[name]) < float(wrong[name])


def test_the_root_divides_by_gamma2() -> None:
    regions, words = made(B, D, R), made(B, D, T)
    plain = word_scores(regions, words, LENGTHS, DAMSMSettings(gamma2=3.0))
    rooted = word_scores(regions, words, LENGTHS, DAMSMSettings(gamma2=3.0, root=True))
    assert torch.allclose(rooted.exp() ** 3.0, plain.exp())


@pytest.mark.parametrize(
    ("terms", "names"),
    [
        ("words", {"image_to_words", "words_to_image"}),
        ("sentence", {"image_to_sentence", "sentence_to_image"}),
    ],
)
def test_one_term_is_the_same_as_beside_the_other(terms: str, names: set[str]) -> None:
    regions, code = made(B, D, 2, 3), made(B, D)
    captions = Captions(made(B, D, T), LENGTHS, made(B, D), torch.arange(B))
    both = damsm_losses(regions, code, captions, DAMSMSettings())
    alone = damsm_losses(regions, code, captions, DAMSMSettings(terms=terms))
    assert set(alone) == names
    assert all(torch.equal(alone[name], both[name]) for name in names)


class LargestTensor(TorchDispatchMode):
    """Remembers how large the largest result of any operation was."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.numel = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(tensor, Tensor):
                self.numel = max(self.numel, tensor.numel())
        return result


def test_chunks_bound_memory_and_change_nothing() -> None:
    images, captions, regions_count, words_count = 4, 7, 50, 6
    lengths = torch.tensor([6, 1, 3, 2, 6, 4, 5])

    def run(chunk: int | None) -> tuple[list[Tensor], int, int]:
        regions = made(images, D, regions_count).requires_grad_()
        words = made(captions, D, words_count).requires_grad_()
        kept = 0

        def keep(tensor: Tensor) -> Tensor:
            nonlocal kept
            kept += tensor.numel()
            return tensor

        with LargestTensor() as largest:
            with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
                scores = word_scores(regions, words, lengths, DAMSMSettings(chunk=chunk))
            gradients = torch.autograd.grad(scores.sin().sum(), [regions, words])
        return [scores, *gradients], largest.numel, kept

    whole, largest, kept = run(None)
    assert largest == images * captions * regions_count * words_count
    for chunk in (1, 2, 3, 7, 9):
        values, size, held = run(chunk)
        assert all(torch.allclose(a, b, rtol=1e-12) for a, b in zip(values, whole, strict=True))
        assert size <= images * min(chunk, captions) * regions_count * words_count
        assert held < kept / 4 or chunk >= captions
