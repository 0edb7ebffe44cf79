"""The three ways to a network's size are those of the libraries that they are named after."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch_fidelity.interpolate_compat_tensorflow import (
    interpolate_bilinear_2d_like_tensorflow1x,
)

from t2i_hpc.evaluation.detectors import pillow_filter
from t2i_hpc.evaluation.detectors.detector import as_pillow, as_tensorflow_1, cleanly
from t2i_hpc.evaluation.detectors.pillow_filter import by_integers, pillow_levels
from tests.evaluation.conftest import some_images
from tests.support.fake_gpu import GPU, fake_gpu


@pytest.mark.parametrize("size", [32, 64, 299, 400])
def test_as_tensorflow_1_is_torch_fidelitys(size: int) -> None:
    images = some_images(2, size, seed=size)
    expected = interpolate_bilinear_2d_like_tensorflow1x(
        images.float(), size=(299, 299), align_corners=False
    )
    torch.testing.assert_close(as_tensorflow_1(images, 299), expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("size", [64, 299, 400])
def test_as_pillow_is_pillows_to_the_level(size: int) -> None:
    image = some_images(1, size, seed=size)
    pixels = image[0].permute(1, 2, 0).numpy()
    resized = Image.fromarray(pixels).resize((299, 299), Image.Resampling.BILINEAR)
    expected = torch.from_numpy(np.asarray(resized).copy()).permute(2, 0, 1).float()
    assert (as_pillow(image, 299)[0] - expected).abs().max() <= 1
    assert (as_pillow(image, 299)[0] - expected).abs().mean() < 0.01


@pytest.mark.parametrize("size", [64, 299, 700])
def test_integers_are_pillows_bit_for_bit(size: int) -> None:
    image = some_images(1, size, seed=size)
    resized = Image.fromarray(image[0].permute(1, 2, 0).numpy()).resize(
        (299, 299), Image.Resampling.BILINEAR
    )
    expected = torch.from_numpy(np.asarray(resized).copy()).permute(2, 0, 1)
    assert torch.equal(by_integers(image, 299)[0], expected)
    assert torch.equal(pillow_levels(image, 299)[0], expected)


def test_pillows_filter_waits_for_no_gpu() -> None:
    pillow_filter._taps_on.cache_clear()
    with fake_gpu():
        images = torch.empty(2, 3, 64, 64, dtype=torch.uint8, device=GPU)
        assert pillow_levels(images, 299).shape == (2, 3, 299, 299)
    pillow_filter._taps_on.cache_clear()


@pytest.mark.parametrize("size", [64, 299, 400])
def test_cleanly_is_pillows_bicubic_of_unrounded_channels(size: int) -> None:
    image = some_images(1, size, seed=size)
    channels = [
        np.asarray(
            Image.fromarray(channel.numpy().astype(np.float32), mode="F").resize(
                (299, 299), Image.Resampling.BICUBIC
            )
        )
        for channel in image[0]
    ]
    expected = torch.from_numpy(np.stack(channels)).clamp(0, 255)
    torch.testing.assert_close(cleanly(image, 299)[0], expected, rtol=0, atol=5e-3)


def test_the_ways_differ() -> None:
    image = some_images(1, 400, seed=3)
    ways = [way(image, 299) for way in (as_tensorflow_1, as_pillow, cleanly)]
    for first, second in ((0, 1), (0, 2), (1, 2)):
        assert (ways[first] - ways[second]).abs().max() > 5
