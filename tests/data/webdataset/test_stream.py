"""Tars without a manifest: endless batches, whatever the tars, and no sample lost in silence."""

from __future__ import annotations

import io
import logging
import multiprocessing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import ImageCms

from t2i_hpc.common.errors import ConfigurationError, DataError
from t2i_hpc.config.data import DataConfig
from t2i_hpc.data.images import to_srgb
from t2i_hpc.data.split import Split
from t2i_hpc.data.webdataset_stream import expand
from tests.support.data import captions_of, draw_image, image_bytes, make_shards
from tests.support.servers import serving
from tests.support.tars import (
    BATCH,
    RESOLUTION,
    VOCABULARY,
    foreign,
    keys_of,
    stream_of,
    take,
    write_tars,
)


@pytest.mark.parametrize("workers", [0, 2])
def test_what_a_batch_holds(urls: str, workers: int) -> None:
    batches = take(stream_of(urls, workers=workers), 12, start=40)
    for number, batch in enumerate(batches):
        assert (batch.images.shape, batch.images.dtype) == ((8, 3, 16, 16), torch.uint8)
        assert (batch.tokens.shape, batch.tokens.dtype) == ((8, 6), torch.int64)
        begin = 40 + number * BATCH
        assert batch.positions.tolist() == list(range(begin, begin + BATCH))
        assert torch.equal(batch.classes, -1 - batch.positions)  # none is given
        for row, (key, caption) in enumerate(zip(batch.keys, batch.captions, strict=True)):
            assert caption in captions_of(int(key))
            words = batch.tokens[row][: batch.lengths[row]].tolist()
            rest = iter(VOCABULARY.encode(caption))
            assert all(word in rest for word in words)
    assert set(keys_of(batches)) == {f"{number:04d}" for number in range(22)}
    assert len({text for batch in batches for text in batch.captions}) > 40


def test_pixels_are_windows_of_the_image(urls: str) -> None:
    split_free = stream_of(urls, resize_ratio=1.5, flip=False)  # scales to the stored 24 px
    for batch in take(split_free, 2):
        for image, key in zip(batch.images, batch.keys, strict=True):
            whole = torch.tensor(_decoded(int(key))).permute(2, 0, 1)
            windows = whole.unfold(1, RESOLUTION, 1).unfold(2, RESOLUTION, 1)
            assert (windows == image[:, None, None]).all(-1).all(-1).all(0).any()


def _decoded(number: int) -> Any:
    from t2i_hpc.data.images import decode

    return decode(image_bytes(number, "PNG", 24, 24))


@pytest.mark.parametrize("workers", [0, 2])
def test_every_rank_has_its_slice_and_tars_of_its_own(urls: str, workers: int) -> None:
    ranks = [take(stream_of(urls, rank, 2, workers=workers), 8) for rank in range(2)]
    for number, parts in enumerate(zip(*ranks, strict=True)):
        positions = [place for part in parts for place in part.positions.tolist()]
        assert positions == list(range(number * BATCH, (number + 1) * BATCH))
    assert keys_of(ranks[0]) != keys_of(ranks[1])


@pytest.mark.parametrize("workers", [0, 2])
def test_the_same_start_gives_the_same_batches(urls: str, workers: int) -> None:
    first, again = (take(stream_of(urls, workers=workers), 6) for _ in range(2))
    assert keys_of(first) == keys_of(again)
    assert all(torch.equal(a.images, b.images) for a, b in zip(first, again, strict=True))
    assert keys_of(take(stream_of(urls, workers=workers), 6, start=48)) != keys_of(first)


def test_one_tar_feeds_any_number_of_ranks_and_workers(tmp_path: Path) -> None:
    urls = write_tars(tmp_path / "one", [foreign(number) for number in range(3)])
    for rank in range(4):
        batches = take(stream_of(urls, rank, 4, workers=3), 9)
        assert set(keys_of(batches)) == {"0000", "0001", "0002"}
    assert not multiprocessing.active_children()


@pytest.mark.parametrize(("kind", "captions"), [("json", [0]), ("both", [1])])
def test_captions_beside_the_image(tmp_path: Path, kind: str, captions: list[int]) -> None:
    urls = write_tars(tmp_path / "tars", [foreign(number, kind) for number in range(6)])
    (batch,) = take(stream_of(urls), 1)
    for key, caption, label in zip(batch.keys, batch.captions, batch.classes, strict=True):
        assert caption in [captions_of(int(key))[place] for place in captions]
        assert kind == "both" or label == 7


def test_our_own_shards_are_read_too(tmp_path: Path) -> None:
    shards = make_shards(tmp_path, count=12, size=24, shard_samples=5)
    split = Split.open(DataConfig(path=str(shards)), "train")
    batches = take(stream_of(f"{shards}/train/{{000000..000002}}.tar"), 6)
    assert set(keys_of(batches)) == {split.sample(number).key for number in range(12)}
    for batch in batches:
        for key, label in zip(batch.keys, batch.classes, strict=True):
            assert label == split.sample(int(key[:4])).class_id


def test_tars_on_a_server_give_the_batches_of_the_folder(urls: str) -> None:
    folder = Path(urls).parent
    here = take(stream_of(urls), 4)
    with serving(folder) as server:
        there = take(stream_of(f"{server.url}/{{0..4}}.tar"), 4)
        assert keys_of(here) == keys_of(there)
        server.ranges = False
        assert keys_of(take(stream_of(f"{server.url}/{{0..4}}.tar"), 4)) == keys_of(here)


def test_colors_are_those_of_an_index_in_place(tmp_path: Path) -> None:
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    renamed = srgb.replace(b"s\0R\0G\0B", b"x\0R\0G\0B")
    profile = renamed.replace(b"rXYZ", b"____").replace(b"gXYZ", b"rXYZ").replace(b"____", b"gXYZ")
    plain, stream = draw_image(1, RESOLUTION, RESOLUTION), io.BytesIO()
    plain.save(stream, "PNG", icc_profile=profile)
    urls = write_tars(tmp_path / "tars", [foreign(1) | {"png": stream.getvalue()}])
    (batch,) = take(stream_of(urls, resize_ratio=1.0, flip=False), 1)
    shown = batch.images[0].permute(1, 2, 0).numpy()
    assert not np.array_equal(shown, np.asarray(plain))
    assert np.array_equal(shown, to_srgb(np.asarray(plain), profile))


def test_upscaling_is_reported_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    urls = write_tars(tmp_path / "tars", [foreign(number, size=12) for number in range(6)])
    with caplog.at_level(logging.WARNING):
        for rank in range(2):
            (batch, _) = take(stream_of(urls, rank, 2), 2)
            assert batch.images.shape[-2:] == (16, 16)
    assert len(caplog.records) == 1
    assert "shorter side of 12 px, below the resolution of 16 px" in caplog.text


def test_patterns() -> None:
    with pytest.raises(ConfigurationError, match=r"needs data\.urls="):
        expand([])
    with pytest.raises(ConfigurationError, match=r"data\.urls: .*braces"):
        expand(["{0..3.tar"])
    with pytest.raises(DataError, match=r"would run a command"):
        expand(["pipe:curl http://h/{0..3}.tar"])
    with pytest.raises(DataError, match=r"names nowhere/0\.tar, .*\(4 of 5 tars are missing\)"):
        expand(["nowhere/{0..3}.tar", "http://h/x.tar"])
    assert expand(["s3://b/{08..10}.tar", "https://h/x.tar"]) == [
        "s3://b/08.tar",
        "s3://b/09.tar",
        "s3://b/10.tar",
        "https://h/x.tar",
    ]


def test_an_indivisible_batch_is_refused(urls: str) -> None:
    with pytest.raises(ConfigurationError, match=r"batch_size=8 cannot be divided by 3 ranks"):
        stream_of(urls, 0, 3)


def test_nothing_depends_on_torchs_generator(urls: str) -> None:
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    take(stream_of(urls), 1)
    assert torch.equal(before, torch.random.get_rng_state())
    assert replace(DataConfig(), reader="webdataset").urls == []
