"""Inception's blocks as they run on CPUs give the values of the networks that they are made of."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch_fidelity import feature_extractor_inceptionv3 as fidelity
from torchvision.models import inception

from t2i_hpc.evaluation.detectors.cpu_kernels import SideBySide, chunks_of, prepare_for_cpu
from t2i_hpc.evaluation.detectors.detector import fold_batch_norms


@pytest.fixture
def two_threads() -> Iterator[None]:
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)


@pytest.mark.parametrize(
    ("block", "padding"),
    [
        (fidelity.InceptionA(8, 32), False),
        (fidelity.InceptionC(8, 16), False),
        (inception.InceptionA(8, 32), True),
        (inception.InceptionC(8, 16), True),
    ],
    ids=["fidelity A", "fidelity C", "torchvision A", "torchvision C"],
)
def test_blocks_are_those_that_they_are_made_of(block: nn.Module, padding: bool) -> None:
    torch.manual_seed(1)
    for module in block.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.bias, -1, 1)
            nn.init.uniform_(module.weight, 0.5, 2)
    images = torch.randn(2, 8, 9, 9).contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        expected = block.eval()(images)
        ours = prepare_for_cpu(
            fold_batch_norms(nn.Sequential(block)), average_counts_padding=padding
        )
        assert not any(isinstance(module, nn.Conv2d) for module in ours.modules())
        torch.testing.assert_close(ours(images), expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(ours(images[:1]), expected[:1], rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("two_threads")
def test_chunks_run_side_by_side_on_threads_of_their_own() -> None:
    seen: list[tuple[int, int]] = []
    meet = threading.Barrier(2)

    def double(images: Tensor) -> Tensor:
        meet.wait(60)  # both chunks are inside at once
        seen.append((len(images), torch.get_num_threads()))
        return 2 * images

    images = torch.arange(37)
    assert torch.equal(SideBySide(double)(images, 2), 2 * images)
    assert sorted(seen) == [(18, 1), (19, 1)]
    later: list[int] = []
    thread = threading.Thread(target=lambda: later.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert [torch.get_num_threads(), *later] == [2, 2]


def test_no_chunk_is_smaller_than_kernels_like() -> None:
    assert [chunks_of(images, 4) for images in (1, 31, 32, 64, 640)] == [1, 1, 2, 4, 4]
