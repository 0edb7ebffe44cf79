"""Tars whose headers were forged byte by byte: refused by name, without reading what they claim."""

from __future__ import annotations

import os
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest

from t2i_hpc.common.errors import DataError
from t2i_hpc.data.format.tars import index_tar, members_of
from tests.support.data import image_bytes
from tests.support.mutations import BLOCK, summed


def raw(name: bytes, content: bytes = b"", kind: bytes = b"0", size: bytes | None = None) -> bytes:
    """A header as it comes, and its content in whole blocks."""
    block = bytearray(BLOCK)
    block[: len(name)] = name
    block[100:108] = b"0000644\0"
    block[124:136] = (b"%011o" % len(content) if size is None else size).ljust(12, b"\0")
    block[156:157] = kind
    block[257:265] = b"ustar\00000"
    return summed(bytes(block)) + content + bytes(-len(content) % BLOCK)


def pax(*records: bytes) -> bytes:
    """A pax header with some records key=value."""
    lines = b""
    for record in records:
        length = len(record) + 2
        while len(line := b"%d %s\n" % (length, record)) != length:
            length = len(line)
        lines += line
    return raw(b"PaxHeader", lines, b"x")


def long_name(name: bytes) -> bytes:
    return raw(b"././@LongLink", name + b"\0", b"L")


FOUR = raw(b"b.json", b"1234")
CRAFTED = {
    "pax of 8 GB": (raw(b"p", kind=b"x", size=b"77777777777"), r"'p' claims 8,589,934,591 bytes"),
    "name of 8 GB": (raw(b"p", kind=b"L", size=b"77777777777"), r"'p' claims 8,589,934,591 bytes"),
    "pax of 100 kB": (pax(b"path=" + b"a" * 100_000) + FOUR, r"a name of 100,\d+ bytes"),
    "name of 100 kB": (long_name(b"a" * 100_000) + FOUR, r"a name of 100,001 bytes"),
    "name longer than it claims": (
        raw(b"././@LongLink", b"b" * 200 + b".json", b"L", b"00000000006") + FOUR,
        r"a name that is longer than it claims",
    ),
    "empty name": (long_name(b"") + FOUR, r"an empty name at byte 1,024"),
    "empty name in pax": (pax(b"path=") + FOUR, r"an empty name at byte 1,024"),
    "slash": (raw(b"b.json/", b"1234"), r"'b\.json/', which is no plain file"),
    "size -1": (raw(b"b.json", size=b"\xff" * 12), r"'b\.json' claims -1 bytes"),
    "size -512": (raw(b"b.json", size=b"-0000001000"), r"'b\.json' claims -512 bytes"),
    "size of digits that are none": (raw(b"b.json", size=b"9zz"), r"not a whole tar \(invalid"),
    "base-256 size": (raw(b"b.json", size=b"\x80" + b"\x7f" * 11), r"'b\.json' claims [\d,]{30,}"),
    "past the end": (raw(b"b.json", size=b"00004000000"), r"'b\.json' claims 1,048,576 bytes"),
    "a size in pax": (pax(b"size=1024") + FOUR, r"changes 'size' of a member"),
    "a negative size in pax": (pax(b"size=-9999") + FOUR, r"changes 'size' of a member"),
    "sparse in pax": (pax(b"GNU.sparse.map=0,4", b"path=b.json") + FOUR, r"'GNU\.sparse\.map'"),
    "charset in pax": (pax(b"hdrcharset=BINARY") + FOUR, r"changes 'hdrcharset'"),
    "pax twice": (pax(b"path=b.json") * 2 + FOUR, r"a second header for one member"),
    "pax and GNU": (pax(b"a=b") + long_name(b"b.json") + FOUR, r"a second header for one member"),
    "pax without member": (pax(b"path=b.json"), r"a name without its member"),
    "pax too long": (raw(b"p", b"99 path=a\n", b"x") + FOUR, r"a pax header that cannot be read"),
    "pax of no length": (raw(b"p", b"0 path=a\n", b"x") + FOUR, r"a pax header that cannot"),
    "pax without value": (raw(b"p", b"7 path\n", b"x") + FOUR, r"a pax header that cannot"),
    "global pax": (raw(b"p", b"15 path=a.json\n", b"g") + FOUR, r"changes 'path' of all members"),
    "volume": (raw(b"b.json", b"", b"V"), r"'b\.json', which is no plain file"),
    "rest of a volume": (raw(b"b.json", b"", b"M"), r"'b\.json', which is no plain file"),
    "contiguous": (raw(b"b.json", b"1234", b"7"), r"'b\.json', which is no plain file"),
    "folder with a size": (raw(b"b/", b"1234", b"5"), r"'b', which is no plain file"),
    "NUL": (pax(b"path=b.json\0.png") + FOUR, r"'b\.json\\x00\.png', a name with control"),
    "line break": (raw(b"b\n.json", b"1234"), r"'b\\n\.json', a name with control"),
    "escape": (raw(b"\x1b[2J.json", b"1234"), r"'\\x1b\[2J\.json', a name with control"),
    "not UTF-8": (raw(b"\xffb.json", b"1234"), r"'\\udcffb\.json', a name with control"),
    "absolute in pax": (pax(b"path=/etc/b.json") + FOUR, r"'/etc/b\.json', a path out"),
    "parent in GNU": (long_name(b"../b.json") + FOUR, r"'\.\./b\.json', a path out"),
}


@pytest.mark.parametrize("folders", [False, True])
@pytest.mark.parametrize("name", CRAFTED)
def test_crafted_headers_are_refused_at_little_cost(
    tmp_path: Path, name: str, folders: bool
) -> None:
    crafted, message = CRAFTED[name]
    path = tmp_path / "x.tar"
    path.write_bytes(raw(b"a.json", b"1234") + crafted + bytes(2 * BLOCK))
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match=message) as caught:
            members_of(path, folders)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()
    assert "x.tar" in str(caught.value)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("names", [pax, long_name])
def test_long_names_are_read(tmp_path: Path, names: Callable[[bytes], bytes]) -> None:
    path, name = tmp_path / "x.tar", "ü" * 300 + ".json"
    prefix = b"path=" if names is pax else b""
    path.write_bytes(names(prefix + name.encode()) + FOUR + bytes(2 * BLOCK))
    (found,) = members_of(path)
    assert (found.name, found.size) == (name, 4)
    assert path.read_bytes()[found.offset_data :][:4] == b"1234"


@pytest.mark.parametrize(
    ("name", "form", "message"),
    [
        ("a.jpg", "PNG", r"member 'a\.jpg', is called jpeg but is png"),
        ("a.png", "JPEG", r"member 'a\.png', is called png but is jpeg"),
        ("a.webp", "GIF", r"member 'a\.webp', is no image \(it is no JPEG, PNG or WebP image\)"),
        ("a.png", "TIFF", r"member 'a\.png', is no image"),
    ],
)
def test_misnamed_images_are_refused(tmp_path: Path, name: str, form: str, message: str) -> None:
    path = tmp_path / "x.tar"
    path.write_bytes(
        raw(name.encode(), image_bytes(0, form)) + raw(b"a.json", b"{}") + bytes(2 * BLOCK)
    )
    with pytest.raises(DataError, match=r"x\.tar, " + message):
        index_tar(path)


@pytest.mark.parametrize(("name", "limit"), [("b.png", 256 << 20), ("b.json", 1 << 20)])
def test_outsized_members_are_refused_unread(tmp_path: Path, name: str, limit: int) -> None:
    path = tmp_path / "a.tar"
    header = raw(name.encode(), size=b"%011o" % (limit + 1))
    path.write_bytes(header)
    os.truncate(path, limit + 4 * BLOCK)  # empty blocks, which take no room on the disk
    with pytest.raises(DataError, match=rf"'{name}' of {limit + 1:,} bytes, more than"):
        index_tar(path)


def test_the_number_of_members_is_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("t2i_hpc.data.format.tars.MOST_MEMBERS", 500)
    path = tmp_path / "a.tar"
    for count in (500, 501):
        path.write_bytes(raw(b"a.json") * count + bytes(2 * BLOCK))
        if count > 500:
            with pytest.raises(DataError, match=r"a\.tar has over 500 members"):
                members_of(path)
        else:
            assert len(members_of(path)) == count
