"""Tars of others become splits: captions found, image bytes unchanged, hostile ones refused."""

from __future__ import annotations

import gzip
import io
import json
import re
import tarfile
from pathlib import Path

import numpy as np
import pytest
import webdataset
from PIL import Image

from t2i_hpc.common.errors import DataError
from t2i_hpc.config.data import DataConfig, ShardsConfig
from t2i_hpc.data.build.split_writer import build_split
from t2i_hpc.data.split import Split
from t2i_hpc.data.verification import verify_split
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
        source="webdataset",
        images=str(tmp_path / "in"),
        output=str(tmp_path / "out"),
        shard_samples=3,
        **{"format": "original", "max_rejected": 1.0, **settings},  # type: ignore[arg-type]
    )
    build_split(config)
    return Split.open(DataConfig(path=config.output), config.split)


def test_tars_of_img2dataset(tmp_path: Path) -> None:
    for tar in range(2):
        members = [part for number in range(4 * tar, 4 * tar + 4) for part in img2dataset(number)]
        pack(tmp_path / "in" / f"{tar:05d}.tar", members)
        (tmp_path / "in" / f"{tar:05d}_stats.json").write_text("{}")
    split = build(tmp_path)
    manifest = split.manifest
    assert manifest.counts.tolist() == [3, 3, 2]
    assert (manifest.name, manifest.image_format) == ("webdataset", "jpeg")
    assert (manifest.size, manifest.smallest) == (48, 48)
    for number in range(8):
        sample = split.sample(number)
        assert sample.key == f"{number // 4:05d}/{number:09d}"
        assert sample.image == image_bytes(number, "JPEG", 60, 48)
        own = (1 << 40) + (number // 4 << 20) + number % 4  # by its tar and its place in there
        assert (sample.captions, sample.class_id) == ((captions_of(number)[0],), own)
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
UNFIT: dict[str, tuple[Members, str, str]] = {
    "no caption": ([("a.jpg", IMAGE)], "no caption", r"t\.tar, sample a: it has no caption"),
    "no image": ([("a.txt", b"one")], "no image", r"sample a: it has no image, it holds \.txt"),
    "silent": ([("a.jpg", IMAGE), ("a.txt", b" ")], "no caption", r"its text is empty"),
    "no texts": (
        [("a.jpg", IMAGE), ("a.json", b'{"text": 3}')],
        "no caption",
        r"or 'captions', 'caption' or 'text' in \.json; caption_key=",
    ),
    "JSON": ([("a.jpg", IMAGE), ("a.json", b"{")], "unreadable description", "not readable JSON"),
    "deep JSON": (
        [("a.jpg", IMAGE), ("a.json", b"[" * 200_000)],
        "unreadable description",
        "nested too deep|not readable",
    ),
    "two images": (
        [("a.jpg", IMAGE), ("a.png", IMAGE), TEXT],
        "more than one image",
        r"it holds \.jpg, \.png, \.txt",
    ),
    "two texts": ([("a.jpg", IMAGE), TEXT, TEXT], "member that is there twice", r"'a\.txt' twice"),
    "long text": (
        [("a.jpg", IMAGE), ("a.txt", b"x" * (1 << 20) + b"x")],
        "outsized member",
        r"'a\.txt' has 1,048,577 bytes",
    ),
    "parent": (
        [("../a.jpg", IMAGE), TEXT],
        "member that is no plain file",
        r"'\.\./a\.jpg', a path out of its folder",
    ),
    "a class of letters": (
        [("a.jpg", IMAGE), TEXT, ("a.cls", b"bird")],
        "unreadable description",
        r"its \.cls is 'bird', no whole number",
    ),
    "damaged": ([("a.jpg", IMAGE[:200]), TEXT], "image that cannot be decoded", r"t/a in .*t\.tar"),
    "a GIF": ([("a.jpg", image_bytes(0, "GIF")), TEXT], "a GIF image", r"t/a in .* is a GIF image"),
    "dots in members": (
        [("a.input.jpg", IMAGE), ("a.outputs.txt", b"one")],
        "no image",
        r"it holds \.input\.jpg, \.outputs\.txt: name it with image_member=input\.jpg",
    ),
}


@pytest.mark.parametrize("case", UNFIT)
def test_what_cannot_be_used_is_left_out_and_listed(tmp_path: Path, case: str) -> None:
    members, kind, reason = UNFIT[case]
    pack(tmp_path / "in" / "t.tar", [*members, ("z.jpg", IMAGE), ("z.txt", b"whole")])
    split = build(tmp_path)
    assert [split.sample(n).key for n in range(split.count)] == ["t/z"]
    listed = (split.manifest.folder / "rejected.jsonl").read_text().split("\n")[:-1]
    rows = {row["kind"]: row["reason"] for row in map(json.loads, listed)}
    assert re.search(reason, rows[kind])


def test_links_are_left_out_and_listed(tmp_path: Path) -> None:
    pack(tmp_path / "in" / "t.tar", [("a.jpg", IMAGE), TEXT])
    with tarfile.open(tmp_path / "in" / "t.tar", "a") as tar:
        link = tarfile.TarInfo("b.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    split = build(tmp_path)
    (row,) = (split.manifest.folder / "rejected.jsonl").read_text().split("\n")[:-1]
    assert "'b.jpg', which is no plain file" in json.loads(row)["reason"]


def test_a_cut_tar_gives_its_whole_samples(tmp_path: Path) -> None:
    path = pack(tmp_path / "in" / "t.tar", [*img2dataset(0), *img2dataset(1)])
    content = path.read_bytes()
    path.write_bytes(content[: content.index(b"000000001.json") + 600])
    split = build(tmp_path)
    assert [split.sample(n).key for n in range(split.count)] == ["t/000000000"]
    (row,) = (split.manifest.folder / "rejected.jsonl").read_text().split("\n")[:-1]
    assert json.loads(row)["kind"] == "damaged tar"
    assert "1 samples before that are taken" in json.loads(row)["reason"]


def test_a_tar_without_end_mark_is_taken_and_reported(tmp_path: Path) -> None:
    path = pack(tmp_path / "in" / "t.tar", [*img2dataset(0), *img2dataset(1)])
    path.write_bytes(path.read_bytes().rstrip(b"\0").ljust(512 * 100, b"\0")[: 512 * 100])
    content = path.read_bytes().rstrip(b"\0")
    path.write_bytes(content + bytes(-len(content) % 512))
    built = build_split(
        ShardsConfig(source="webdataset", images=str(path.parent), output=str(tmp_path / "out"))
    )
    assert (built.manifest.sample_count, built.rejected) == (2, 0)
    assert f"1 tars have no end mark, as if cut between two files; the first is {path}" in str(
        built
    )


def test_damaged_tars_count_as_tars(tmp_path: Path) -> None:
    for tar in range(4):
        members = [part for number in range(40) for part in img2dataset(number)]
        path = pack(tmp_path / "in" / f"{tar}.tar", members)
        if tar < 2:
            path.write_bytes(path.read_bytes()[:-20_000])
    with pytest.raises(DataError, match=r"2 of 4 tars are damaged .* more than the 1 of max_rej"):
        build(tmp_path, max_rejected=0.05)


def test_a_global_pax_header_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "in" / "t.tar"
    path.parent.mkdir()
    with tarfile.open(path, "w", pax_headers={"comment": "a commit"}) as tar:
        for name, content in img2dataset(0):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    assert build(tmp_path).count == 1


def test_tars_in_folders_and_links_are_found(tmp_path: Path) -> None:
    pack(tmp_path / "in" / "0.tar", img2dataset(0))
    pack(tmp_path / "in" / "more" / "1.TAR", img2dataset(1))
    pack(tmp_path / "elsewhere" / "2.tar", img2dataset(2))
    (tmp_path / "in" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "in" / "more" / "round").symlink_to(tmp_path / "in")
    split = build(tmp_path)
    keys = [split.sample(n).key for n in range(split.count)]
    assert keys == ["0/000000000", "linked/2/000000002", "more/1/000000001"]


@pytest.mark.parametrize("name", ["1.tar.gz", "1.tgz", "1.tar"])
def test_compressed_tars_are_refused_by_name(tmp_path: Path, name: str) -> None:
    pack(tmp_path / "in" / "0.tar", img2dataset(0))
    packed = pack(tmp_path / "x.tar", img2dataset(1)).read_bytes()
    (tmp_path / "in" / name).write_bytes(gzip.compress(packed))
    with pytest.raises(DataError, match=rf"1 tars .* compressed, .*{name} \(gzip\).* run gunzip"):
        build(tmp_path)


def test_members_are_grouped_as_webdataset_groups_them(tmp_path: Path) -> None:
    members = [("a.jpg", IMAGE), ("a.txt", b"one"), ("a.url.txt", b"x"), ("a.syn.json", b"{}")]
    pack(tmp_path / "in" / "t.tar", [*members, ("d.1/b.v1.jpg", IMAGE), ("d.1/b.txt", b"one")])
    split = build(tmp_path)
    assert (split.count, split.sample(0).captions) == (1, ("one",))
    samples = build(tmp_path, split="chosen", image_member="v1.jpg")
    assert [samples.sample(n).key for n in range(samples.count)] == ["t/d.1/b"]


def test_settings_name_members_and_keys(tmp_path: Path) -> None:
    described = b'{"TEXT": "short one", "caption": "short"}'
    members = [("a.input.jpg", IMAGE), ("a.syn.json", described), ("a.txt", b"no")]
    pack(tmp_path / "in" / "t.tar", members)
    chosen = {"image_member": "input.jpg", "caption_member": "syn.json"}
    assert build(tmp_path, **chosen).sample(0).captions == ("short",)
    other = build(tmp_path, split="b", **chosen, caption_key="text")
    assert other.sample(0).captions == ("short one",)


def test_given_classes_and_own_ones_do_not_collide(tmp_path: Path) -> None:
    members: Members = []
    for number, given in enumerate([b"5", None, b"2", None]):
        members += img2dataset(number)
        members += [(f"{number:09d}.cls", given)] if given else []
    pack(tmp_path / "in" / "t.tar", members)
    split = build(tmp_path)
    assert [split.sample(n).class_id for n in range(4)] == [5, (1 << 40) + 1, 2, (1 << 40) + 3]


def test_tars_are_scaled_as_every_source_is(tmp_path: Path) -> None:
    pack(tmp_path / "in" / "t.tar", img2dataset(0))
    split = build(tmp_path, size=24, format="webp")
    assert (split.sample(0).image_format, split.image(0).shape) == ("webp", (24, 30, 3))


def test_a_caption_with_a_line_break_is_one(tmp_path: Path) -> None:
    caption = "L\u2019\u00e9t\u00e9\u0085 a bird \u2028on a\nbranch"
    text = json.dumps({"caption": caption}).encode()
    pack(
        tmp_path / "in" / "t.tar", [("a.jpg", IMAGE), ("a.txt", caption.encode()), ("a.json", text)]
    )
    assert build(tmp_path).sample(0).captions == (caption,)


def test_photographs_that_img2dataset_encoded_anew_stand_upright(tmp_path: Path) -> None:
    """Their EXIF is gone from the file, but noted in the JSON."""
    noted = json.dumps(
        {"caption": "one", "exif": json.dumps({"Image Orientation": "Rotated 90 CW"})}
    )
    image = image_bytes(1, "PNG", 30, 20)
    pack(tmp_path / "in" / "t.tar", [("a.png", image), ("a.json", noted.encode())])
    split = build(tmp_path)
    assert np.array_equal(split.image(0), np.rot90(np.asarray(draw_image(1, 30, 20)), -1))


def test_what_macos_leaves_is_passed_over(tmp_path: Path) -> None:
    left = [("._a.jpg", b"\0\5\26\7"), ("./._a.txt", b"x"), ("__MACOSX/a.jpg", b"x")]
    pack(tmp_path / "in" / "t.tar", [*left, ("./a.jpg", IMAGE), ("./a.txt", b"one")])
    pack(tmp_path / "in" / "._t.tar", [])
    split = build(tmp_path)
    assert split.count == 1
    assert not (split.manifest.folder / "rejected.jsonl").exists()


def test_settings_that_make_no_sense(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    with pytest.raises(DataError, match=r"has no \.tar files"):
        build(tmp_path)
    pack(tmp_path / "in" / "t.tar", img2dataset(0))
    with pytest.raises(DataError, match=r"captions= does not belong to source=webdataset"):
        build(tmp_path, captions="x.json")
