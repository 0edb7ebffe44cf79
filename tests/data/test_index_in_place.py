"""Tars of others are read where they lie: in an exact order, and what changed is noticed."""

from __future__ import annotations

import io
import itertools
import json
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from t2i_hpc.common.errors import ConfigurationError, DataError, UserError
from t2i_hpc.config.data import DataConfig, ShardsConfig
from t2i_hpc.data.build import index_in_place
from t2i_hpc.data.build.split_writer import (
    build_index,
    build_index_partition,
    build_partition,
    build_split,
    merge_split,
)
from t2i_hpc.data.build.tar_records import Indexed, Place, index_place
from t2i_hpc.data.format import tar_stream
from t2i_hpc.data.format.sums import new_sum
from t2i_hpc.data.format.tar_stream import TarStream, UnansweredError, fill_from_blocks
from t2i_hpc.data.images import decode
from t2i_hpc.data.inspection import splits_at
from t2i_hpc.data.sampler import RankSlice
from t2i_hpc.data.split import Split
from t2i_hpc.data.training_data import open_training_data
from t2i_hpc.data.verification import verify_split
from tests.data.test_partition_reads import opens
from tests.data.test_webdataset_tars import img2dataset, pack
from tests.support.data import captions_of, draw_image, image_bytes
from tests.support.servers import fail, serving


def write_tars(folder: Path, tars: int = 3, each: int = 4) -> Path:
    for tar in range(tars):
        numbers = range(tar * each, (tar + 1) * each)
        pack(folder / f"{tar:05d}.tar", [part for n in numbers for part in img2dataset(n)])
    return folder


def config_of(tmp_path: Path, **settings: Any) -> ShardsConfig:
    given: dict[str, Any] = {
        "images": str(tmp_path / "in"),
        "index": str(tmp_path / "index"),
        "workers": 1,
    }
    return ShardsConfig(source="webdataset", **(given | settings))


def opened(tmp_path: Path, **settings: Any) -> Split:
    return Split.open(DataConfig(path=str(tmp_path / "index"), **settings), "train")


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_samples_are_those_of_the_tars(tmp_path: Path) -> None:
    write_tars(tmp_path / "in")
    for tar, counted in enumerate((4, 6, 3)):  # as img2dataset does
        (tmp_path / "in" / f"{tar:05d}_stats.json").write_text(f'{{"successes": {counted}}}')
    built = build_index(config_of(tmp_path))
    assert "12 samples in 3 of 3 tars" in str(built)
    assert re.search(r"; 1 tars hold fewer .* first is \S*00001\.tar \(4 of 6\)", str(built))
    assert sorted(path.name for path in (tmp_path / "index").iterdir()) == [
        "train",
        "vocabulary.json",
    ]
    split = opened(tmp_path)
    assert split.manifest.counts.tolist() == [4, 4, 4]
    assert (split.manifest.size, split.manifest.smallest) == (48, 48)
    for number in range(12):
        sample = split.sample(number)
        assert sample.key == f"{number // 4:05d}/{number:09d}"
        assert sample.image == image_bytes(number, "JPEG", 60, 48)
        assert (sample.captions, sample.class_id) == ((captions_of(number)[0],), -1 - number)
    verify_split(split.manifest, lambda _: None)
    shutil.rmtree(tmp_path / "in")
    with pytest.raises(DataError, match=r"00000\.tar is missing; correct its path in .*tars\.json"):
        opened(tmp_path)


def test_any_world_has_the_same_batches(tmp_path: Path) -> None:
    write_tars(tmp_path / "in")
    build_index(config_of(tmp_path))
    data = open_training_data(DataConfig(path=str(tmp_path / "index"), workers=0))
    assert data.samples == 12
    assert not data.notice
    whole = list(itertools.islice(data.loader(16, 3, RankSlice(4)).batches(0), 6))
    assert {key for batch in whole[:3] for key in batch.keys} == {
        f"{n // 4:05d}/{n:09d}" for n in range(12)
    }
    for rank in range(2):
        later = data.loader(16, 3, RankSlice(4, rank, 2)).batches(8)  # resumed at position 8
        for batch, part in zip(whole[2:], later, strict=False):
            assert part.keys == batch.keys[2 * rank : 2 * rank + 2]
            assert (part.images == batch.images[2 * rank : 2 * rank + 2]).all()


def test_partitions_and_processes_make_the_same_index(tmp_path: Path) -> None:
    write_tars(tmp_path / "in", tars=5)
    build_index(config_of(tmp_path, workers=2))
    expected = content(tmp_path / "index" / "train")
    parts = config_of(tmp_path, index=str(tmp_path / "parts"))
    for partition in ("2/2", "1/2"):
        with pytest.raises(DataError, match=r"are not made.*build partition=|no partitions to"):
            merge_split(tmp_path / "parts" / "train")
        build_index_partition(replace(parts, partition=partition))
    merge_split(tmp_path / "parts" / "train")
    assert content(tmp_path / "parts" / "train") == expected
    assert len({*(tmp_path / "index").iterdir()}) == 2


def test_only_tars_that_changed_are_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_tars(tmp_path / "in")
    config = replace(config_of(tmp_path), partition="1/1")
    build_index_partition(config)
    os.utime(tmp_path / "in" / "00001.tar", ns=(1, 1))
    read = []

    def counted(place: Place, *rest: Any) -> Indexed:
        read.append(place.name)
        return index_place(place, *rest)

    monkeypatch.setattr(index_in_place, "index_place", counted)
    build_index_partition(config)
    assert read == ["00001"]
    assert "resuming: 2 of 3 tars are done" in capsys.readouterr().err


def test_a_tar_that_changed_is_noticed(tmp_path: Path) -> None:
    write_tars(tmp_path / "in")
    build_index(config_of(tmp_path))
    tar, split = tmp_path / "in" / "00001.tar", opened(tmp_path)
    whole = tar.read_bytes()
    at = whole.index(b"JFIF") + 100
    tar.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
    with pytest.raises(DataError, match=r"sample 4 in .*00001\.tar has changed .* or index the"):
        opened(tmp_path).sample(4)
    with pytest.raises(DataError, match=r"00001\.tar is damaged at its member 'at byte "):
        verify_split(split.manifest, lambda _: None)
    tar.write_bytes(whole[:-512])
    with pytest.raises(DataError, match=r"instead of .*: it was cut or changed; index the tars"):
        opened(tmp_path)
    with pytest.raises(DataError, match=r"00001\.tar has \d.* bytes, not .*; index the tars"):
        verify_split(split.manifest, lambda _: None)


def test_photographs_stand_upright_and_names_may_lie(tmp_path: Path) -> None:
    exif, stream = Image.Exif(), io.BytesIO()
    exif[0x0112] = 6
    draw_image(1, 60, 48).save(stream, "JPEG", exif=exif)
    noted = json.dumps({"caption": "a", "exif": '{"Image Orientation": "Rotated 180"}'}).encode()
    pack(
        tmp_path / "in" / "a.tar",
        [
            ("0.jpg", stream.getvalue()),
            ("0.json", b'{"caption": "a", "class": 7}'),
            ("1.jpg", image_bytes(1, "PNG", 60, 48)),
            ("1.json", noted),
        ],
    )
    build_index(config_of(tmp_path))
    split = opened(tmp_path)
    plain = decode(image_bytes(1, "JPEG", 60, 48))
    assert np.array_equal(split.image(0), np.rot90(plain, -1))
    assert split.sample(0).class_id == 7
    assert split.sample(1).image_format == "png"
    turned = np.rot90(decode(image_bytes(1, "PNG", 60, 48)), 2)
    assert np.array_equal(split.image(1), turned)
    batch = next(
        open_training_data(
            DataConfig(path=str(tmp_path / "index"), workers=0, resize_ratio=1.0, flip=False)
        )
        .loader(48, 0, RankSlice(2))
        .batches(0)
    )
    row = [key.endswith("/1") for key in batch.keys].index(True)
    pixels = batch.images[row].permute(1, 2, 0).numpy()
    assert any(np.array_equal(pixels, turned[:, at : at + 48]) for at in range(13))


def test_what_cannot_be_used_is_listed(tmp_path: Path) -> None:
    write_tars(tmp_path / "in", each=20)
    whole = (tmp_path / "in" / "00001.tar").read_bytes()
    (tmp_path / "in" / "00001.tar").write_bytes(whole[: len(whole) // 2])
    bad = [("x.jpg", b"no image"), ("x.txt", b"a"), ("y.jpg", image_bytes(1, "JPEG"))]
    pack(
        tmp_path / "in" / "00003.tar", [*bad, *(part for n in (90, 91) for part in img2dataset(n))]
    )
    built = build_index(config_of(tmp_path, max_rejected=0.4))
    assert dict(built.kinds) == {
        "image that cannot be decoded": 1,
        "no caption": 1,
        "damaged tar": 1,
    }
    lines = (tmp_path / "index" / "train" / "rejected.jsonl").read_text().splitlines()
    assert len(lines) == 3
    verify_split(built.manifest, lambda _: None)
    shutil.rmtree(tmp_path / "index")
    with pytest.raises(DataError, match=r"1 of 4 tars are damaged|samples were rejected"):
        build_index(config_of(tmp_path, max_rejected=0.0))
    with pytest.raises(DataError, match=r"none of the .* samples of .* \(no caption"):
        build_index(config_of(tmp_path, caption_member="syn.json"))


def test_a_filter_takes_some(tmp_path: Path) -> None:
    write_tars(tmp_path / "in")
    members = []
    for number in range(6):
        said = {"caption": "a bird", "aesthetic": number, "url": f"https://x/{number}"}
        members += [(f"{number}.jpg", image_bytes(number, "JPEG", 60, 48))]
        members += [(f"{number}.json", json.dumps(said).encode())]
    pack(tmp_path / "in" / "scored.tar", members)
    built = build_index(config_of(tmp_path, filter="aesthetic >= 4 and min(width, height) == 48"))
    assert (built.manifest.sample_count, built.filtered) == (2, 16)
    assert "16 left out by filter=" in str(built)
    text = bytes(built.manifest.descriptions).decode()
    assert '"source": {"aesthetic": 4, "url": "https://x/4"}' in text
    other = config_of(tmp_path, index=str(tmp_path / "other"))
    with pytest.raises(ConfigurationError, match="no sample says 'asthetic': did you mean 'aesth"):
        build_index(replace(other, filter="width > 1 or asthetic > 4"))
    with pytest.raises(DataError, match=r"filter= leaves out all 18"):
        build_index(replace(other, filter="aesthetic > 9"))


@pytest.mark.parametrize("reads", ["shards", "ranges"])
def test_tars_on_a_server(tmp_path: Path, reads: str) -> None:
    write_tars(tmp_path / "there")
    with serving(tmp_path / "there") as server:
        urls = [f"{server.url}/{{00000..00002}}.tar?signature=secret"]
        built = build_index(config_of(tmp_path, images="", urls=urls, workers=1))
        assert "secret" not in str(built)
        split = opened(
            tmp_path, remote_reads=reads, cache=str(tmp_path / "cache"), retry_seconds=1.0
        )
        for number in (11, 0, 5):
            sample = split.sample(number)
            assert sample.key == f"{number // 4:05d}/{number:09d}"
            assert sample.image == image_bytes(number, "JPEG", 60, 48)
        if reads == "ranges":
            verify_split(split.manifest, lambda _: None)
            whole = (tmp_path / "there" / "00002.tar").read_bytes()
            (tmp_path / "there" / "00002.tar").write_bytes(whole.replace(b"JFIF", b"JFIX", 1))
            with pytest.raises(DataError, match=r"http://\S*00002\.tar is damaged at its member"):
                verify_split(split.manifest, lambda _: None)
    if reads == "shards":
        assert split.sample(4).captions == (captions_of(4)[0],)  # the copy in the cache
        return
    with pytest.raises(UserError, match=r"cannot read http://127\S*\.tar "):
        split.sample(4)


def test_a_server_that_fails_is_no_damaged_tar(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index_in_place, "_RETRY_SECONDS", 0.1)
    write_tars(tmp_path / "there")
    with serving(tmp_path / "there") as server:
        config = config_of(tmp_path, images="", urls=[f"{server.url}/{{00000..00002}}.tar"])
        server.fault = lambda handler, path: (
            path == "00001.tar" and "Range" in handler.headers and fail(handler)
        )
        with pytest.raises(UserError, match=r"cannot read http://\S*00001\.tar \(the server answ"):
            build_index(config)
    assert not (tmp_path / "index" / "train").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"output": "out"}, "leave out output=, or index="),
        ({"size": 64}, r"size= has no meaning with index= \(images are read as they are\)"),
        ({"test_fraction": 0.1}, "another split="),
        ({"source": "folder"}, "add source=webdataset"),
        ({"urls": ["a.tar"]}, r"either images=, a folder of tars, or urls="),
        ({"images": "", "urls": ["none.tar"]}, r"urls= names .*none\.tar, which cannot be read"),
        ({"images": "", "urls": ["a{0..1}.tar", "a1.tar"]}, r"names a1\.tar twice"),
        ({"filter": "__import__('os')"}, r"__import__\(\) is not offered"),
    ],
)
def test_refused_settings(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    write_tars(tmp_path / "in", tars=1)
    with pytest.raises(UserError, match=message):
        build_index(replace(config_of(tmp_path), **settings))


def test_verify_takes_an_address_resumes_and_uses_processes(tmp_path: Path) -> None:
    write_tars(tmp_path / "in")
    built, log = build_index(config_of(tmp_path)), tmp_path / "whole.jsonl"
    seen: list[int] = []
    verify_split(built.manifest, seen.append, workers=2, log=log)
    assert sum(seen) == 12
    assert len(log.read_text().splitlines()) == 3
    shutil.rmtree(tmp_path / "in")  # nothing is read again
    verify_split(built.manifest, seen.append, log=log)
    assert sum(seen) == 24


def test_an_index_is_read_from_a_folder(tmp_path: Path) -> None:
    write_tars(tmp_path / "in")
    build_index(config_of(tmp_path))
    with serving(tmp_path / "index") as server:
        address = re.escape(f"{server.url}/train")
        with pytest.raises(DataError, match=rf"{address} is an index of tars .* copy it here"):
            splits_at(f"{server.url}/train")


def test_a_partition_of_an_index_opens_its_own_tars(tmp_path: Path) -> None:
    write_tars(tmp_path / "in", 4)
    with opens(".tar") as names:
        build_index_partition(replace(config_of(tmp_path), partition="2/4"))
        assert names() == {"00001.tar"}


def test_shards_of_an_index_are_made_in_partitions(tmp_path: Path) -> None:
    """Scaled, with the words and what the source says; others' tars need not be there."""
    write_tars(tmp_path / "in")
    indexed = build_index(config_of(tmp_path)).manifest
    config = ShardsConfig(
        source="split",
        images=str(indexed.folder),
        output=str(tmp_path / "out"),
        size=24,
        shard_samples=5,
        workers=1,
    )
    (tmp_path / "in" / "00000.tar").rename(tmp_path / "in" / "gone")
    assert build_partition(replace(config, partition="2/3")) == [range(1, 2)]  # samples 5 to 9
    (tmp_path / "in" / "gone").rename(tmp_path / "in" / "00000.tar")
    assert len((tmp_path / "out" / ".train.partial" / "build.json").read_text()) < 1000
    for partition in ("1/3", "3/3"):
        build_partition(replace(config, partition=partition))
    built = merge_split(tmp_path / "out" / "train")
    split = Split.open(DataConfig(path=config.output), "train")
    assert split.manifest.counts.tolist() == [5, 5, 2]
    assert split.vocabulary.sha256 == indexed.vocabulary
    for number in range(12):
        sample = split.sample(number)
        assert min(split.image(number).shape[:2]) == 24
        own = (1 << 40) + number  # above all that samples may say
        assert (sample.captions, sample.class_id) == ((captions_of(number)[0],), own)
        assert sample.source == {"url": "x"}
    whole = replace(config, output=str(tmp_path / "whole"))
    build_split(whole)
    assert content(tmp_path / "whole" / "train") == content(built.manifest.folder)


def test_a_faster_hash_of_tars_is_recorded_and_compared(tmp_path: Path) -> None:
    write_tars(tmp_path / "in")
    build_index(config_of(tmp_path, checksum="xxh128"))
    manifest = opened(tmp_path).manifest
    assert manifest.checksum == "xxh128"
    assert {shard.sha256[32:] for shard in manifest.shards()} == {"0" * 32}
    verify_split(manifest, lambda _: None)
    tar = tmp_path / "in" / "00002.tar"
    whole = tar.read_bytes()
    tar.write_bytes(whole[:148] + b" " + whole[149:])  # the sum of a header: no sample changed
    with pytest.raises(DataError, match=r"00002\.tar has changed \(XXH128 differs\), though each"):
        verify_split(manifest, lambda _: None)
    with pytest.raises(DataError, match="checksum= belongs to index="):
        build_split(replace(config_of(tmp_path, checksum="xxh128"), index="", output="out"))


@pytest.mark.parametrize("checksum", ["sha256", "xxh128"])
def test_a_window_of_any_size_gives_the_same_bytes(
    monkeypatch: pytest.MonkeyPatch, checksum: str
) -> None:
    monkeypatch.setattr(tar_stream, "_BLOCK", 700)
    content = np.random.default_rng(0).bytes(20_000)
    blocks = iter([content[:1], content[1:9_000], content[9_000:]])
    told: list[int] = []
    fill = fill_from_blocks(blocks)
    stream = TarStream("a.tar", len(content), fill, told.append, checksum)
    for offset, count in ((0, 512), (512, 100), (1_024, 5_000), (9_000, 10), (19_990, 512)):
        assert stream.read(offset, count) == content[offset : offset + count]
    expected = new_sum(checksum)
    expected.update(content)
    assert stream.sum() == expected.hexdigest()
    assert sum(told) == len(content)
    with pytest.raises(UnansweredError, match="it became shorter"):
        TarStream("a.tar", 9, fill_from_blocks(iter([b"12"])), told.append).read(0, 9)
