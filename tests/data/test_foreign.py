"""Tars of others become splits: captions found, image bytes unchanged, hostile ones refused."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import webdataset
from PIL import Image

from t2i_hpc.common.errors import DataError
from t2i_hpc.config.data import DataConfig, ShardsConfig
from t2i_hpc.data.inspection import verify_split
from t2i_hpc.data.split import Split
from t2i_hpc.data.writer import write_shards
from tests.support.data import captions_of, draw_image, image_bytes, make_shards

Members = list[tuple[str, bytes]]


def pack(path: Path, members: Members) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def img2dataset(number: int) -> Members:
    """The members that img2dataset writes for one image."""
    key, caption = f"{number:09d}", captions_of(number)[0]
    text = json.dumps({"caption": caption, "url": "x", "key": key, "status": "success"})
    image = image_bytes(number, "JPEG", 60, 48)
    return [(f"{key}.jpg", image), (f"{key}.txt", caption.encode()), (f"{key}.json", text.encode())]


def build(tmp_path: Path, **settings: object) -> Split:
    config = ShardsConfig(
        source="index",
        images=str(tmp_path / "in"),
        output=str(tmp_path / "out"),
        shard_samples=3,
        **settings,  # type: ignore[arg-type]
    )
    write_shards(config)
    return Split.open(DataConfig(path=config.output), config.split)


def test_tars_of_img2dataset(tmp_path: Path) -> None:
    for tar in range(2):
        members = [part for number in range(4 * tar, 4 * tar + 4) for part in img2dataset(number)]
        pack(tmp_path / "in" / f"{tar:05d}.tar", members)
        (tmp_path / "in" / f"{tar:05d}_stats.json").write_text("{}")
    split = build(tmp_path, size=16)
    manifest = split.manifest
    assert manifest.counts.tolist() == [3, 3, 2]
    assert (manifest.name, manifest.image_format) == ("index", "jpeg")
    assert (manifest.size, manifest.smallest) == (48, 48)  # not scaled, whatever size= says
    for number in range(8):
        sample = split.sample(number)
        assert sample.key == f"{number // 4:05d}/{number:09d}"
        assert sample.image == image_bytes(number, "JPEG", 60, 48)
        assert (sample.captions, sample.class_id) == ((captions_of(number)[0],), number)
    verify_split(manifest, lambda _: None)


def test_tars_of_webdatasets_writer(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    with webdataset.TarWriter(str(tmp_path / "in" / "a.tar")) as sink:
        for n, form in enumerate(("jpg", "png", "webp", "png")):
            image = image_bytes(n, {"jpg": "JPEG"}.get(form, form.upper()))
            described = {"captions": captions_of(n), "class": 5 + n}
            sink.write({"__key__": f"dir.1/x {n}", form: image, "json": described, "cls": n})
    split = build(tmp_path)
    assert split.manifest.image_format == "png"  # of most images
    for n, form in enumerate(("jpeg", "png", "webp", "png")):
        sample = split.sample(n)
        assert (sample.key, sample.class_id) == (f"a/dir.1/x {n}", 5 + n)
        assert (sample.image, sample.image_format) == (image_bytes(n, form.upper()), form)
        assert list(sample.captions) == captions_of(n)


def test_our_own_shards_are_tars_as_well(tmp_path: Path) -> None:
    folder = make_shards(tmp_path, count=4)
    (tmp_path / "in").symlink_to(folder / "train")
    split = build(tmp_path)
    first = Split.open(DataConfig(path=str(folder)), "train")
    assert [split.sample(n).image for n in range(4)] == [first.sample(n).image for n in range(4)]
    assert [split.sample(n).class_id for n in range(4)] == [0, 1, 2, 0]


IMAGE = image_bytes(0, "JPEG")
CAPTIONS: dict[str, tuple[Members, tuple[str, ...]]] = {
    "lines": ([("a.txt", b" one \n\ntwo\n")], ("one", "two")),
    "text": ([("a.json", b'{"text": "one"}')], ("one",)),
    "list": ([("a.json", b'{"captions": ["one", "", "two"], "text": "no"}')], ("one", "two")),
    "text file first": ([("a.json", b'{"text": "no"}'), ("a.txt", b"one")], ("one",)),
    "empty text file": ([("a.json", b'{"text": "one"}'), ("a.txt", b"\n")], ("one",)),
    "not UTF-8": ([("a.txt", b"caf\xe9")], ("caf\ufffd",)),
    "other kinds beside": ([("a.txt", b"one"), ("a.npy", b"\x93NUMPY"), ("b.cls", b"1")], ("one",)),
    "a JSON list beside": ([("a.txt", b"one"), ("a.json", b"[1]")], ("one",)),
}


@pytest.mark.parametrize("case", CAPTIONS)
def test_where_captions_stand(tmp_path: Path, case: str) -> None:
    members, captions = CAPTIONS[case]
    pack(tmp_path / "in" / "t.tar", [*members, ("a.JPEG", IMAGE)])
    sample = build(tmp_path).sample(0)
    assert (sample.captions, sample.image) == (captions, IMAGE)


def test_a_packed_folder(tmp_path: Path) -> None:
    source = tmp_path / "folder" / "deep"
    source.mkdir(parents=True)
    (source / "a.jpg").write_bytes(IMAGE)
    (source / "a.txt").write_text("one")
    (tmp_path / "in").mkdir()
    with tarfile.open(tmp_path / "in" / "t.tar", "w") as tar:
        tar.add(tmp_path / "folder", ".")
    assert build(tmp_path).sample(0).key == "t/deep/a"


def test_photographs_that_exif_turns_are_turned(tmp_path: Path) -> None:
    exif, stream = Image.Exif(), io.BytesIO()
    exif[0x0112] = 6
    draw_image(1, 30, 20).save(stream, "PNG", exif=exif)
    pack(tmp_path / "in" / "t.tar", [("a.png", stream.getvalue()), ("a.txt", b"one")])
    split = build(tmp_path)
    assert np.array_equal(split.image(0), np.rot90(np.asarray(draw_image(1, 30, 20)), -1))


TEXT = ("a.txt", b"one")
REFUSED: dict[str, tuple[Members, str]] = {
    "no caption": ([("a.jpg", IMAGE)], r"1 images of .*t\.tar have no \.txt or \.json.* is a:"),
    "no image": ([("a.jpg", IMAGE), TEXT, ("b.txt", b"")], r"captions of .* no image.* is b:"),
    "silent": ([("a.jpg", IMAGE), ("a.txt", b" ")], r"t\.tar, member a has no caption"),
    "no texts": ([("a.jpg", IMAGE), ("a.json", b'{"text": 3}')], r"member a has no caption"),
    "JSON": ([("a.jpg", IMAGE), ("a.json", b"{")], r"member a has unreadable JSON"),
    "deep JSON": ([("a.jpg", IMAGE), ("a.json", b"[" * 200_000)], r"member a has unreadable JSON"),
    "two images": ([("a.jpg", IMAGE), ("a.png", IMAGE), TEXT], r"'a\.png' beside 'a\.jpg'"),
    "two texts": ([("a.jpg", IMAGE), TEXT, TEXT], r"'a\.txt' beside 'a\.txt'"),
    "long text": ([("a.jpg", IMAGE), ("a.txt", b"x" * (1 << 20) + b"x")], r"'a\.txt' of 1,048,577"),
    "parent": ([("../a.jpg", IMAGE), TEXT], r"'\.\./a\.jpg', a path out of its folder"),
    "damaged": ([("a.jpg", IMAGE[:200]), TEXT], r"t/a in .*t\.tar cannot be decoded"),
    "nothing": ([("a.parquet", b"")], r"hold no images"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_used_is_refused(tmp_path: Path, case: str) -> None:
    members, message = REFUSED[case]
    pack(tmp_path / "in" / "t.tar", members)
    with pytest.raises(DataError, match=message):
        build(tmp_path)
    assert not (tmp_path / "out" / "train").exists()


def test_links_are_refused(tmp_path: Path) -> None:
    pack(tmp_path / "in" / "t.tar", [("a.jpg", IMAGE), TEXT])
    with tarfile.open(tmp_path / "in" / "t.tar", "a") as tar:
        link = tarfile.TarInfo("b.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    with pytest.raises(DataError, match=r"'b\.jpg', which is no plain file"):
        build(tmp_path)


def test_a_cut_tar_is_refused(tmp_path: Path) -> None:
    path = pack(tmp_path / "in" / "t.tar", img2dataset(0))
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(DataError, match=r"t\.tar is not a whole tar|t\.tar breaks off"):
        build(tmp_path)


def test_settings_that_make_no_sense(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    with pytest.raises(DataError, match=r"has no \.tar files"):
        build(tmp_path)
    pack(tmp_path / "in" / "t.tar", img2dataset(0))
    with pytest.raises(DataError, match=r"captions= does not belong to source=index"):
        build(tmp_path, captions="x.json")
