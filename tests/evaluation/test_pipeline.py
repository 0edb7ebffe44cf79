"""Images reach the detector without waiting: pooled decoding, prefetching, pinned copies."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch

from t2i_hpc.config.data import DataConfig
from t2i_hpc.config.evaluation import EvaluationConfig
from t2i_hpc.config.tasks import EvaluateConfig
from t2i_hpc.data.images import Pixels
from t2i_hpc.evaluation.detectors.detector import to_device
from t2i_hpc.evaluation.image_sources import RealImages, ResizeRule, real_images
from t2i_hpc.evaluation.pipeline import Waiting, extract_features, pooled
from tests.evaluation.comparing import generated_images
from tests.evaluation.fakes import FakeDetector
from tests.support.fake_gpu import GPU, WaitError, fake_gpu


@pytest.fixture
def two_threads() -> Iterator[None]:
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)


@pytest.mark.usefixtures("two_threads")
def test_one_thread_reads_and_several_decode() -> None:
    readers, decoders, meet = set[int](), set[int](), threading.Barrier(2)

    def read(number: int) -> Callable[[], Pixels]:
        readers.add(threading.get_ident())

        def decode() -> Pixels:
            meet.wait(60)  # two images are decoded at once
            decoders.add(threading.get_ident())
            return np.full((6, 8, 3), number, dtype=np.uint8)

        return decode

    real = RealImages(4, "", "here", "files", lambda number: read(number)(), read=read)
    found = real.resized([3, 1, 2, 0], ResizeRule(), 4)
    assert found.shape == (4, 3, 4, 4)
    assert found[:, 0, 0, 0].tolist() == [3, 1, 2, 0]
    assert readers == {threading.get_ident()}
    assert len(decoders) == 2
    assert threading.get_ident() not in decoders


def test_an_error_of_a_pool_is_raised() -> None:
    with pytest.raises(ZeroDivisionError):
        pooled(lambda number: 1 / number, [1, 0])


def test_a_split_decodes_in_the_pool_what_it_gives_alone(shards: Path) -> None:
    config = EvaluateConfig(evaluation=EvaluationConfig(split="test"))
    real, rule = real_images(config, DataConfig(path=str(shards))), ResizeRule()
    assert real.read is not None
    alone = [torch.from_numpy(rule.resize(real.image(n), n, 16).copy()) for n in range(3)]
    expected = torch.stack(alone).permute(0, 3, 1, 2)
    assert torch.equal(real.resized(range(3), rule, 16), expected)


def test_the_detector_says_how_long_it_waited() -> None:
    clock = iter(range(100))
    with patch("t2i_hpc.evaluation.pipeline.time.perf_counter", lambda: float(next(clock))):
        waiting = extract_features(generated_images, FakeDetector(), range(8), 4, lambda b: None)
    # Two batches and the end, each a tick of waiting between two readings of the clock.
    assert (waiting.seconds, waiting.total) == (3.0, 7.0)
    assert Waiting().share == 0


def test_a_copy_to_a_gpu_waits_for_nothing() -> None:
    with fake_gpu():
        images = torch.zeros(2, 3, 4, 4, dtype=torch.uint8)
        assert to_device(images, GPU).device == GPU
        with pytest.raises(WaitError):
            torch.zeros(2, 3, 4, 4, dtype=torch.uint8).to(GPU)
