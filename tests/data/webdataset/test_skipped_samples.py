"""What a stream without a manifest cannot read is told; a little of it is left out."""

from __future__ import annotations

import io
import itertools
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import webdataset
from PIL import Image

from t2i_hpc.common.errors import DataError
from t2i_hpc.data.images import encode
from t2i_hpc.data.storage import fetching
from tests.support.data import captions_of, draw_image, image_bytes
from tests.support.servers import MortalServer, fail, serving
from tests.support.tars import (
    foreign,
    keys_of,
    stream_of,
    take,
    write_tars,
)


@pytest.fixture
def mortal(urls: str) -> Iterator[MortalServer]:
    server = MortalServer(Path(urls).parent)
    yield server
    server.kill()


@pytest.mark.parametrize("workers", [0, 2])
def test_a_server_that_dies_is_reported_once(mortal: MortalServer, workers: int) -> None:
    batches = stream_of(f"{mortal.url}/{{0..4}}.tar", workers=workers).batches(0)
    next(batches)
    mortal.kill()
    with pytest.raises(DataError, match=r"^cannot read http://127\S*\.tar .*tried \d+ times"):
        list(itertools.islice(batches, 50))


def test_a_server_that_fails_within_a_tar_is_reported_once(
    urls: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetching, "BLOCK", 4096)
    with serving(Path(urls).parent) as server:
        server.fault = lambda handler, _: (
            "bytes=0-" not in handler.headers["Range"] and fail(handler)
        )
        with pytest.raises(
            DataError, match=r"^cannot read http://\S*\.tar \(the server answers 500"
        ):
            take(stream_of(f"{server.url}/{{0..4}}.tar"), 9)


def test_a_tar_that_is_not_on_the_server(mortal: MortalServer) -> None:
    with pytest.raises(DataError, match=r"/nothing\.tar \(there is no such file; tried 2 times"):
        take(stream_of(f"{mortal.url}/nothing.tar", retry_seconds=20), 1)


def test_a_few_useless_samples_are_left_out_and_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    samples = [foreign(number) for number in range(100)]
    samples[3]["png"] = samples[3]["png"][:60]
    del samples[5]["txt"]
    samples[7]["jpg"] = image_bytes(7, "JPEG")
    samples[9] = foreign(9, "json") | {"json": b'{"caption": '}
    urls = write_tars(tmp_path / "tars", samples, each=100)
    batches = take(stream_of(urls, shuffle_buffer=1), 13)
    assert not {"0003", "0005", "0007", "0009"} & set(keys_of(batches))
    told = caplog.messages
    assert len(told) == len(set(told)) == 4
    assert any("0003 in " in text and "0.tar" in text and "decode" in text for text in told)
    assert any("0005 in " in text and "it has no caption" in text for text in told)
    assert any("0007 in " in text and "more than one image" in text for text in told)


@pytest.mark.parametrize("workers", [0, 2])
def test_many_useless_samples_end_the_run(tmp_path: Path, workers: int) -> None:
    samples = [foreign(number) for number in range(12)]
    for sample in samples[::3]:
        sample["png"] = b"no image"
    stream = stream_of(write_tars(tmp_path / "tars", samples), workers=workers)
    with pytest.raises(DataError, match=r"^11 samples or tars of data\.urls cannot be used.*\.tar"):
        take(stream, 50)


@pytest.mark.parametrize(
    ("within_a_member", "reason"), [(True, "breaks off: "), (False, "its end is missing")]
)
def test_a_tar_that_was_cut_is_reported(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, within_a_member: bool, reason: str
) -> None:
    urls = write_tars(tmp_path / "tars", [foreign(number) for number in range(30)], 10)
    tar = tmp_path / "tars" / "1.tar"
    end = len(tar.read_bytes().rstrip(b"\0"))
    os.truncate(tar, end // 3 if within_a_member else -(-end // 512) * 512)
    take(stream_of(urls, shuffle_buffer=1), 12)
    assert f"left out: {tar} (it is damaged or breaks off: " in caplog.messages[0]
    assert reason in caplog.messages[0]
    with pytest.raises(DataError, match=r"cannot be used.*1\.tar"):
        take(stream_of(str(tar), shuffle_buffer=1), 60)


def test_tars_without_samples_do_not_hang(tmp_path: Path) -> None:
    urls = write_tars(tmp_path / "tars", [{"__key__": "a", "cls": b"1"}])
    with pytest.raises(DataError, match=r"0\.tar \(it holds no samples\)"):
        take(stream_of(urls), 1)


def test_what_is_no_tar_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(b"no tar" * 1000)
    with pytest.raises(DataError, match=r"cannot be used.*a\.tar"):
        take(stream_of(str(tmp_path / "a.tar")), 1)


def test_a_cut_tar_lends_nothing_to_the_next(tmp_path: Path) -> None:
    """Keys begin anew in every tar: a picture of one must not get the caption of the other."""
    first, second = foreign(0), foreign(1)
    second["__key__"] = first["__key__"]
    for name, sample in (("0", first), ("1", second)):
        with webdataset.TarWriter(str(tmp_path / f"{name}.tar")) as writer:
            for place in range(3):
                writer.write(sample | {"__key__": f"{place:04d}"})
    cut = tmp_path / "0.tar"
    content = cut.read_bytes()
    os.truncate(cut, content.index(b"0000.txt") + 512 + 3)
    stream = stream_of(f"{tmp_path}/{{0..1}}.tar", shuffle_buffer=1, max_lost=1.0, flip=False)
    batches = take(stream, 4)
    captions = {caption for batch in batches for caption in batch.captions}
    assert captions <= set(captions_of(1))
    pictures = {image.numpy().tobytes() for batch in batches for image in batch.images}
    whole = take(stream_of(str(tmp_path / "1.tar"), shuffle_buffer=1, flip=False), 4)
    assert pictures <= {image.numpy().tobytes() for batch in whole for image in batch.images}


def test_how_much_may_be_lost_is_a_setting(tmp_path: Path) -> None:
    samples = [foreign(number) for number in range(40)]
    for sample in samples[::3]:
        sample["txt"] = b""
    urls = write_tars(tmp_path / "tars", samples)
    with pytest.raises(DataError, match=r"more than data\.max_lost=0\.01; .* or allow more"):
        take(stream_of(urls), 30)
    assert len(take(stream_of(urls, max_lost=0.5), 30)) == 30


def test_members_and_keys_are_settings(tmp_path: Path) -> None:
    sample = foreign(0)
    content = {"input.png": sample.pop("png"), "syn.json": b'{"TEXT": "a red circle"}'}
    urls = write_tars(tmp_path / "tars", [sample | content | {"cls": b"7"}])
    named: dict[str, Any] = {
        "image_member": "input.png",
        "caption_member": "syn.json",
        "caption_key": "text",
    }
    (batch,) = take(stream_of(urls, **named), 1)
    assert set(batch.captions) == {"a red circle"}
    assert batch.classes.tolist() == [7] * 8
    with pytest.raises(DataError, match=r"name it with image_member=input\.png"):
        take(stream_of(urls), 1)


def test_photographs_stand_upright(tmp_path: Path) -> None:
    """By their EXIF, or by what img2dataset notes of the EXIF that it took away."""
    image = draw_image(1, 24, 24)
    exif, stream = Image.Exif(), io.BytesIO()
    exif[0x0112] = 6
    image.save(stream, "PNG", exif=exif)
    noted = json.dumps({"caption": "a", "exif": '{"Image Orientation": "Rotated 90 CW"}'})
    plain = {"__key__": "0", "png": image_bytes(1, "PNG", 24, 24), "json": noted.encode()}
    kept = {"__key__": "0", "png": stream.getvalue(), "json": b'{"caption": "a"}'}
    turned = {"__key__": "0", "json": b'{"caption": "a"}'}
    turned["png"] = encode(np.rot90(np.asarray(image), -1).copy(), "png", 0)
    found = [
        take(stream_of(write_tars(tmp_path / str(n), [one]), flip=False), 1)[0].images[0]
        for n, one in enumerate((plain, kept, turned))
    ]
    assert torch.equal(found[0], found[2])
    assert torch.equal(found[1], found[2])
