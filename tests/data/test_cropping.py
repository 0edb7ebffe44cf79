"""Windows decoded alone are bit-identical to those of the whole image, or are not decoded alone."""

from __future__ import annotations

import ctypes
import io
import itertools
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
import torch
from PIL import Image

from t2i_hpc.config.data import DataConfig
from t2i_hpc.data import cropping
from t2i_hpc.data.cropping import CropDecoder, find_crop_decoder
from t2i_hpc.data.images import Pixels, decode, window
from t2i_hpc.data.sampler import RankSlice
from t2i_hpc.data.split import Split
from t2i_hpc.data.training_data import indexed_loader
from tests.support.data import write_split

SIZE = 24


@pytest.fixture
def decoder() -> CropDecoder:
    found = find_crop_decoder()
    if found is None:
        pytest.skip("no libjpeg-turbo 3 is installed: pip install 't2i-hpc[crop]'")
    return found


def noise(height: int, width: int, seed: int = 0) -> Pixels:
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (height // 4 + 1, width // 4 + 1, 3), dtype=np.uint8)
    image = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    grain = rng.integers(-20, 20, (height, width, 3))
    return (np.asarray(image) + grain).clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize(("height", "width"), [(32, 32), (32, 61), (45, 32), (33, 33), (24, 24)])
def test_windows_are_equal_to_the_bit(decoder: CropDecoder, height: int, width: int) -> None:
    rng = np.random.default_rng(height)
    for seed in range(20):
        content = simplejpeg.encode_jpeg(noise(height, width, seed), 95, "RGB", "444")
        down, across = rng.random(2)
        cut = decoder.decode(content, min(height, width), SIZE, down, across)
        assert cut is not None
        assert np.array_equal(cut, window(decode(content), SIZE, down, across))


def as_file(form: str, **options: object) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(noise(32, 40)).convert(str(options.pop("mode", "RGB"))).save(
        stream, form, **options
    )
    return stream.getvalue()


OTHERS = {
    "subsampled": as_file("JPEG", quality=95, subsampling=2),
    "grey": as_file("JPEG", mode="L"),
    "CMYK": as_file("JPEG", mode="CMYK"),
    "PNG": as_file("PNG"),
    "cut": simplejpeg.encode_jpeg(noise(32, 40), 95, "RGB", "444")[:300],
    "empty": b"",
    "another size": simplejpeg.encode_jpeg(noise(40, 40), 95, "RGB", "444"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_files_are_left_to_the_whole_decoder(decoder: CropDecoder, name: str) -> None:
    assert decoder.decode(OTHERS[name], 32, SIZE, 0.9, 0.9) is None
    good = simplejpeg.encode_jpeg(noise(32, 40), 95, "RGB", "444")
    assert decoder.decode(good, 32, SIZE, 0.9, 0.9) is not None  # and the next one is fine


def test_a_library_with_other_pixels_is_not_used(
    decoder: CropDecoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cropping, "window", lambda image, *where: window(image, *where) ^ 1)
    assert cropping._find_library.__wrapped__() is None


@pytest.mark.parametrize("paths", [[], ["libm.so.6"], ["/nowhere/libturbojpeg.so"]])
def test_other_libraries_and_none_are_not_used(
    paths: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cropping, "_candidates", lambda: iter(paths))
    assert cropping._find_library.__wrapped__() is None
    assert ctypes.util.find_library("m") is not None  # what is refused can be loaded


def test_the_stream_is_the_same_with_and_without(
    decoder: CropDecoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    contents = [
        simplejpeg.encode_jpeg(noise(32, 32 + number, number), 95, "RGB", "444")
        for number in range(12)
    ]
    config = DataConfig(
        path=str(write_split(tmp_path, contents)), resize_ratio=32 / SIZE, workers=0
    )

    def images() -> torch.Tensor:
        stream = indexed_loader(config, Split.open(config, "train"), SIZE, 1, RankSlice(8))
        return torch.cat([batch.images for batch in itertools.islice(stream.batches(0), 4)])

    with_it = images()
    monkeypatch.setattr("t2i_hpc.data.training_data.find_crop_decoder", lambda: None)
    assert torch.equal(images(), with_it)
