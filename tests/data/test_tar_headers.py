"""Usual headers are read by comparison, all others exactly: both see the same members."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path
from typing import Any

import pytest

from t2i_hpc.config.data import ShardsConfig
from t2i_hpc.data.build.sources.webdataset_tars import read_webdataset
from t2i_hpc.data.build.word_counts import WordCounts
from t2i_hpc.data.captions import Vocabulary
from t2i_hpc.data.format.tar_headers import Headers, any_header
from t2i_hpc.data.format.tars import Scan, members_of, scan

FORMATS = {"pax": tarfile.PAX_FORMAT, "gnu": tarfile.GNU_FORMAT, "ustar": tarfile.USTAR_FORMAT}
NAMES = [
    "000000001.jpg",
    "./a.jpg",
    "deep/er/a b.input.jpg",
    "a" * 96 + ".jpg",  # 100 bytes, without a NUL behind them
    "p" * 90 + "/" + "q" * 60 + ".jpg",  # in ustar, its folder stands in another field
    "ü.jpg",
    ".hidden",
    "a/.hidden.jpg",
    "a//b.jpg",
    "no extension",
    "-%~!.jpg",
]


def member(name: str, size: int = 0, **fields: object) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.size = size
    for field, value in fields.items():
        setattr(info, field, value)
    return info


def odd_tar(path: Path, form: int) -> None:
    """Write members of all sizes, folders between them, owners and times that change."""
    with tarfile.open(path, "w", format=form) as tar:
        for number, name in enumerate(NAMES):
            tar.addfile(member(f"f{number}", type=tarfile.DIRTYPE))
            for size in (0, 1, 511, 512, 513):
                info = member(f"{name}{size}", size, mtime=number, uid=number, uname="x" * number)
                if name == "a" * 96 + ".jpg":
                    info.name = name
                tar.addfile(info, io.BytesIO(bytes(size)))
        if form != tarfile.USTAR_FORMAT:
            long = f"{'long' * 60}.jpg"
            for info in (member(long, 9), member("fraction.jpg", 3, mtime=0.5), member("l.txt", 2)):
                tar.addfile(info, io.BytesIO(bytes(info.size)))


@pytest.mark.parametrize("form", FORMATS)
def test_the_quick_way_sees_what_the_exact_one_sees(
    tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.tar"
    odd_tar(path, FORMATS[form])
    found = scan(path)
    assert sum(one.usual for one in found.members) > len(found.members) // 2
    with tarfile.open(path) as tar:
        expected = [(one.name, one.size, one.offset_data) for one in tar if one.isfile()]
    seen = [one[:3] for one in members_of(path, folders=True)]
    assert seen == expected
    monkeypatch.setattr(Headers, "usual", lambda *_: None)
    exact: Scan = scan(path)
    assert [one[:4] for one in exact.members] == [one[:4] for one in found.members]
    assert (exact.unfit, exact.problem, exact.ended) == (found.unfit, "", True)
    assert not any(one.usual for one in exact.members)


def block_of(name: str = "a.jpg", **fields: object) -> bytes:
    return member(name, 7, **fields).tobuf(tarfile.USTAR_FORMAT)


@pytest.mark.parametrize(
    "fields",
    [
        {"type": tarfile.SYMTYPE, "linkname": "b"},
        {"type": tarfile.DIRTYPE},
        {"type": tarfile.CHRTYPE, "devmajor": 1},
        {"name": "../a.jpg"},
        {"name": "/a.jpg"},
        {"name": "a/../../a.jpg"},
        {"name": "a\n.jpg"},
        {"name": f"{'p' * 90}/{'q' * 60}.jpg"},
    ],
)
def test_nothing_but_a_plain_file_is_usual(fields: dict[str, Any]) -> None:
    """Also behind a usual header, with which it is compared."""
    headers, block = Headers(), block_of(**fields)
    assert headers.usual(block, 0) is None
    assert headers.usual(block_of(), 0) == any_header(block_of(), 0)._replace(usual=True)
    assert headers.usual(block, 0) is None


def test_a_changed_byte_makes_a_header_unusual_or_changes_nothing() -> None:
    headers, block = Headers(), block_of()
    assert headers.usual(block, 0) is not None
    for place in range(len(block)):
        changed = bytearray(block)
        changed[place] ^= 1
        if (found := headers.usual(bytes(changed), 0)) is not None:
            assert found == any_header(bytes(changed), 0)._replace(usual=True)
    assert headers.usual(block[:-1], 0) is None
    assert headers.usual(b"", 0) is None


def test_members_of_a_sample_may_be_apart(tmp_path: Path) -> None:
    """The name that differs in its extension alone is that of the same sample, and no other is."""
    names = ["a.txt", "b.txt", "a.jpg", "b.jpg", "c/a.txt", "a.b.jpg", "c/a.jpg", "readme.txt"]
    with tarfile.open(tmp_path / "t.tar", "w") as tar:
        for name in names:
            tar.addfile(member(name, 1), io.BytesIO(b"x"))
    config = ShardsConfig(source="webdataset", images=str(tmp_path), output="x")
    groups = read_webdataset(config).groups
    assert groups is not None
    found = groups.read(0).samples
    assert [one.key for one in found if one.unfit is None] == ["t/a", "t/b", "t/c/a"]


def test_counts_of_tars_number_words_as_their_captions_do() -> None:
    captions = [["the red bird", "Red!"], ["...", "a bird of the sea"], ["Vögel", ""]]
    counted = WordCounts()
    for one in captions:
        counted.add(WordCounts.of(one, "unicode"), bounded=False)
    whole = Vocabulary.from_captions([text for one in captions for text in one], "unicode")
    assert Vocabulary.from_counts(counted.words, "unicode").words == whole.words
    assert (counted.captions, counted.silent, counted.example) == (6, 2, "...")
    assert counted.words["bird"] == counted.words["red"] == 2
