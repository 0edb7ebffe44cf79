"""Tars are read with distrust, and other tools read ours."""

from __future__ import annotations

import io
import json
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
import webdataset

from t2i_hpc.common.errors import DataError
from t2i_hpc.data.format.manifest import IMAGE_FORMATS
from t2i_hpc.data.format.tars import SampleFiles, index_tar, members_of, write_tar
from tests.support.data import captions_of, image_bytes


def write(path: Path, count: int = 3) -> list[SampleFiles]:
    records = [
        SampleFiles(
            f"{n:04d}-x", image_bytes(n), "png", {"key": f"k{n}", "captions": captions_of(n)}
        )
        for n in range(count)
    ]
    write_tar(path, records)
    return records


def test_the_index_leads_to_the_members(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    records = write(path)
    content = path.read_bytes()
    index = index_tar(path)
    assert len(index) == len(records)
    for row, record in zip(index, records, strict=True):
        image = content[row["image_offset"] :][: row["image_bytes"]]
        text = content[row["json_offset"] :][: row["json_bytes"]]
        assert image == record.image
        assert json.loads(text) == record.description
        assert IMAGE_FORMATS[row["image_format"]] == "png"


def test_webdataset_reads_our_shards(tmp_path: Path) -> None:
    records = write(tmp_path / "a.tar")
    found = list(webdataset.WebDataset(str(tmp_path / "a.tar"), shardshuffle=False))
    assert [sample["__key__"] for sample in found] == [record.key for record in records]
    assert [sample["png"] for sample in found] == [record.image for record in records]
    assert json.loads(found[1]["json"]) == records[1].description


def test_we_index_webdatasets_shards(tmp_path: Path) -> None:
    with webdataset.TarWriter(str(tmp_path / "a.tar")) as sink:
        for n in range(3):
            sink.write({"__key__": f"{n}", "jpg": image_bytes(n, "JPEG"), "json": {"n": n}})
    index = index_tar(tmp_path / "a.tar")
    content = (tmp_path / "a.tar").read_bytes()
    texts = [content[row["json_offset"] :][: row["json_bytes"]] for row in index]
    assert [json.loads(text) for text in texts] == [{"n": 0}, {"n": 1}, {"n": 2}]


def test_equal_samples_equal_bytes(tmp_path: Path) -> None:
    write(tmp_path / "a.tar")
    write(tmp_path / "b.tar")
    assert (tmp_path / "a.tar").read_bytes() == (tmp_path / "b.tar").read_bytes()


def test_any_cut_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    write(path)
    content = path.read_bytes()
    end = len(content.rstrip(b"\0"))
    cuts = [*np.linspace(1, end + 512, 40, dtype=int).tolist(), 512, 1024, 0]
    for cut in cuts:
        path.write_bytes(content[:cut])
        with pytest.raises(DataError, match=r"a\.tar"):
            index_tar(path)


def member(name: str, kind: bytes = tarfile.REGTYPE, **fields: object) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type = kind
    for field, value in fields.items():
        setattr(info, field, value)
    return info


HOSTILE: dict[str, tuple[tarfile.TarInfo, str]] = {
    "link": (
        member("b.json", tarfile.SYMTYPE, linkname="/etc/passwd"),
        "'b.json', .*no plain file",
    ),
    "hard link": (member("b.json", tarfile.LNKTYPE, linkname="a.json"), "no plain file"),
    "device": (member("b.json", tarfile.CHRTYPE), "no plain file"),
    "sparse": (member("b.json", tarfile.GNUTYPE_SPARSE), "no plain file"),
    "folder": (member("b", tarfile.DIRTYPE), "no plain file"),
    "absolute": (member("/b.json"), "'/b.json', a path out"),
    "parent": (member("../b.json"), "a path out"),
    "deep parent": (member("c/../../b.json"), "a path out"),
    "pickle": (member("b.pkl"), "'b.pkl'; allowed are .json, .jpg"),
    "no suffix": (member("b"), "allowed are"),
    "double": (member("a.json"), "'a.json' twice"),
    "text only": (member("b.json"), "'b' without"),
    "image only": (member("b.png"), "'b' without"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_members_are_refused(tmp_path: Path, name: str) -> None:
    info, message = HOSTILE[name]
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w") as tar:
        for part in ("a.png", "a.json"):
            tar.addfile(member(part, size=4), io.BytesIO(b"1234"))
        tar.addfile(info, io.BytesIO(b""))
    with pytest.raises(DataError, match=message) as caught:
        index_tar(path)
    assert "x.tar" in str(caught.value)


def test_a_damaged_header_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    write(path)
    content = bytearray(path.read_bytes())
    second = content.index(b"0001-x.png")
    content[second + 100] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"a\.tar"):
        index_tar(path)


@pytest.mark.parametrize("content", [b"", b"no tar", b"no tar at all" * 99, bytes(512)])
def test_what_is_no_tar_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"a\.tar is not a whole tar \(.* at byte \d+\)"):
        index_tar(path)


@pytest.mark.parametrize("kind", ["gz", "bz2", "xz"])
def test_compressed_tars_are_reported_as_such(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a.tar"
    with tarfile.open(path, f"w:{kind}") as tar:  # type: ignore[call-overload]
        tar.addfile(member("a.json"))
    with pytest.raises(DataError, match=r"a\.tar is compressed \(.*\).*: unpack it first"):
        index_tar(path)


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.tar")
    for path in (tmp_path / "a.tar", tmp_path):
        with pytest.raises(DataError, match="is no file"):
            members_of(path)
    with pytest.raises(DataError, match=r"cannot read .*b\.tar: No such file"):
        members_of(tmp_path / "b.tar")


def test_an_empty_tar_has_no_members(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", [])
    assert members_of(tmp_path / "a.tar") == []
    assert len(index_tar(tmp_path / "a.tar")) == 0


def test_tars_in_one_file_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    write(path)
    content = path.read_bytes()
    for rest in (content, b"\0" * 600 + b"x", bytes(1 << 20)):
        path.write_bytes(content + rest)
        with pytest.raises(DataError, match=r"a\.tar continues after its end mark at byte [\d,]+"):
            index_tar(path)
