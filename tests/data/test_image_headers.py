"""What images claim to be is read right, and claims that are too large are refused unread."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import pytest
from PIL import Image, features

from t2i_hpc.common.errors import DataError
from t2i_hpc.data.format.tars import SampleFiles, index_tar, write_tar
from t2i_hpc.data.image_headers import (
    check_any_image,
    check_image,
    dimensions,
    has_notes,
    other_format,
)
from t2i_hpc.data.images import decode
from tests.support.data import draw_image, image_bytes

FORMS: dict[str, tuple[str, dict[str, object]]] = {
    "jpeg": ("JPEG", {}),
    "progressive jpeg": ("JPEG", {"progressive": True}),
    "jpeg with EXIF": ("JPEG", {"exif": b"Exif\0\0MM\0*\0\0\0\x08\0\0\0\0\0\0"}),
    "png": ("PNG", {}),
    "animated png": ("PNG", {"save_all": True}),
    "webp": ("WEBP", {}),
    "lossless webp": ("WEBP", {"lossless": True}),
    "webp with EXIF": ("WEBP", {"exif": b"Exif\0\0MM\0*\0\0\0\x08\0\0\0\0\0\0"}),
    "animated webp": ("WEBP", {"save_all": True}),
}


def saved(name: str, width: int, height: int) -> bytes:
    """An image file; where several images are saved, it is animated."""
    form, options = FORMS[name]
    first, second = (draw_image(number).resize((width, height)) for number in (3, 4))
    more = {"append_images": [second]} if "save_all" in options else {}
    stream = io.BytesIO()
    first.save(stream, form, **options, **more)
    return stream.getvalue()


@pytest.mark.parametrize("size", [(1, 1), (300, 17), (2, 9001), (9001, 2)])
@pytest.mark.parametrize("name", FORMS)
def test_headers_say_what_the_decoder_finds(name: str, size: tuple[int, int]) -> None:
    form, content = FORMS[name][0], saved(name, *size)
    assert dimensions(content) == (form.lower(), *size)
    assert decode(content).shape[:2] == size[::-1]
    check_image(content, form.lower(), "a")


@pytest.mark.parametrize("name", FORMS)
def test_every_cut_is_refused_or_decoded(name: str) -> None:
    form, content = FORMS[name][0], saved(name, 9, 7)
    for cut in range(len(content)):
        for look in (lambda part: check_image(part, form.lower(), "a"), decode):
            try:
                look(content[:cut])
            except DataError as error:
                assert str(error).startswith(("a ", "image "))
    with pytest.raises(DataError):
        decode(content[: len(content) // 2])


def chunk(kind: bytes, content: bytes) -> bytes:
    """A chunk of a PNG file."""
    check = struct.pack(">I", zlib.crc32(kind + content))
    return struct.pack(">I", len(content)) + kind + content + check


def png(width: int, height: int, *more: bytes) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = chunk(b"IDAT", zlib.compress(bytes(1000)))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        (chunk(b"IHDR", header), *more, pixels, chunk(b"IEND", b""))
    )


def jpeg(width: int, height: int) -> bytes:
    content = image_bytes(0, "JPEG")
    place = content.index(b"\xff\xc0") + 5
    return content[:place] + struct.pack(">HH", height, width) + content[place + 4 :]


def riff(*chunks: tuple[bytes, bytes]) -> bytes:
    body = b"".join(name + struct.pack("<I", len(part)) + part for name, part in chunks)
    return b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body


def extended(width: int, height: int, flags: int = 0) -> tuple[bytes, bytes]:
    sides = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    return b"VP8X", bytes([flags, 0, 0, 0]) + sides


LARGEST = 16383  # of a plain WebP image
LOSSLESS = (b"VP8L", b"\x2f" + struct.pack("<I", (LARGEST - 1) * (1 + (1 << 14))) + bytes(41))
LOSSY = (b"VP8 ", b"\x10\x02\0\x9d\x01\x2a" + struct.pack("<HH", LARGEST, LARGEST) + bytes(40))
BOMBS = {
    "png": png(60_000, 60_000),
    "largest png": png(2**31 - 1, 2**31 - 1),
    "jpeg": jpeg(60_000, 60_000),
    "webp": riff(extended(60_000, 60_000), LOSSLESS),
    "animated webp": riff(extended(60_000, 60_000, 2), (b"ANIM", bytes(6)), (b"ANMF", bytes(64))),
    "lossless webp": riff(LOSSLESS),
    "lossy webp": riff(LOSSY),
}


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_are_refused_when_a_shard_is_indexed(tmp_path: Path, name: str) -> None:
    form = name.rsplit(maxsplit=1)[-1] if "2" not in name else "png"
    content = BOMBS[name]
    assert len(content) < 1500
    record = SampleFiles("0-bomb", content, form, {"key": "bomb", "captions": ["a"], "class": 0})
    write_tar(tmp_path / "x.tar", [record])
    with pytest.raises(DataError, match=r"x\.tar, member '0-bomb\..*claims .* pixels, while"):
        index_tar(tmp_path / "x.tar")


TEXT = zlib.compress(bytes(150 << 20), 9)
GIANTS = {
    "text": png(4, 4, chunk(b"zTXt", b"a\0\0" + TEXT)),
    "profile": png(4, 4, chunk(b"iCCP", b"a\0\0" + TEXT)),
    "unicode": png(4, 4, chunk(b"iTXt", b"a\0\1\0\0\0" + TEXT)),
    "many texts": png(4, 4, *[chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(1 << 20)))] * 90),
}

_CHILD = """
import pickle, sys
from t2i_hpc.common.errors import DataError
from t2i_hpc.data.images import decode

def peak():
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))

decode(sys.stdin.buffer.read(int(sys.argv[1])))
before = peak()
for size in map(int, sys.argv[2:]):
    try:
        print("decoded", decode(sys.stdin.buffer.read(size)).shape)
    except DataError as error:
        print("refused", error)
print(peak() - before)
"""


def test_decoding_bombs_takes_little_memory() -> None:
    """In another process, whose memory has seen nothing else."""
    parts = [image_bytes(0, "WEBP"), *BOMBS.values(), *GIANTS.values()]
    done = subprocess.run(
        [sys.executable, "-c", _CHILD, *(str(len(part)) for part in parts)],
        input=b"".join(parts),
        capture_output=True,
        check=True,
        cwd=Path(__file__).parents[2],
    )
    *outcomes, kilobytes = done.stdout.decode().splitlines()
    assert len(outcomes) == len(BOMBS) + len(GIANTS)
    assert all(outcome.startswith("refused") for outcome in outcomes), outcomes
    assert int(kilobytes) < 128 << 10  # unpacked they have 150 MB to 7 GB


def test_jpegs_of_endless_scans_are_refused() -> None:
    content = saved("progressive jpeg", 32, 32)
    last = content.rindex(b"\xff\xda")
    many = content[:last] + content[last:-2] * 200 + content[-2:]
    check_image(content, "jpeg", "a")
    with pytest.raises(DataError, match="a has more than 100 scans"):
        check_image(many, "jpeg", "a")


def test_claims_are_reported() -> None:
    with pytest.raises(DataError, match=r"^a claims 60,000 by 60,000 pixels, while 1 to"):
        check_image(BOMBS["webp"], "webp", "a")
    with pytest.raises(DataError, match=r"^a claims 70,000 by 16,000,000 pixels"):
        check_image(riff(extended(70_000, 16_000_000)), "webp", "a")
    with pytest.raises(DataError, match=r"^a claims 0 by 7 pixels"):
        check_image(png(0, 7), "png", "a")


def test_what_is_behind_a_jpeg_is_no_scan() -> None:
    """Telephones hang a film behind a photograph; a film may hold any bytes."""
    content = image_bytes(0, "JPEG")
    check_image(content + b"\xff\xda" * 500, "jpeg", "x")
    with pytest.raises(DataError, match="more than 100 scans"):
        check_image(content[:-2] + b"\xff\xda\0\2" * 500 + content[-2:], "jpeg", "x")


OTHERS = {
    "GIF": "a GIF image",
    "BMP": "a BMP image",
    "TIFF": "a TIFF image",
    "AVIF": "an AVIF image",
    "JPEG2000": "a JPEG 2000 image",
}


@pytest.mark.parametrize("form", OTHERS)
def test_images_of_other_formats_are_recognized(form: str) -> None:
    if form == "AVIF" and not features.check("avif"):
        pytest.skip("this Pillow writes no AVIF")
    assert other_format(image_bytes(0, form)) == OTHERS[form]


def test_other_files_are_recognized() -> None:
    stream = io.BytesIO()
    Image.new("I;16", (4, 4)).save(stream, "PNG")
    assert other_format(stream.getvalue()) == "a 16-bit grey PNG image"
    assert other_format(b"") == "an empty file"
    assert other_format(b"\n<!DOCTYPE html><p>gone") == "an HTML page"
    assert other_format(b"version https://git-lfs.github.com/spec/v1").startswith(
        "a pointer of Git"
    )
    for form in ("JPEG", "PNG", "WEBP"):
        assert other_format(image_bytes(0, form)) == ""


def test_notes_are_looked_for_behind_thumbnails_as_well() -> None:
    """A thumbnail has the beginning of a scan of its own, which does not end the header."""
    content = image_bytes(0, "JPEG")
    assert not has_notes(content, *claims_of(content))
    profile = b"ICC_PROFILE\0\1\1" + bytes(9)
    for thumbnail in (b"", b"\xff\xda\0\x08"):
        segments = b""
        for marker, body in ((b"\xff\xed", thumbnail), (b"\xff\xe2", profile)):
            segments += marker + struct.pack(">H", len(body) + 2) + body
        noted = content[:2] + segments + content[2:]
        assert has_notes(noted, *claims_of(noted))
    behind = content + profile  # no header
    assert not has_notes(behind, *claims_of(behind))
    for form, mark in (("PNG", b"eXIf"), ("WEBP", b"EXIF")):
        plain = image_bytes(0, form)
        assert not has_notes(plain, *claims_of(plain))
        assert has_notes(plain[:40] + mark + plain[40:], *claims_of(plain))


def claims_of(content: bytes) -> tuple[str, int]:
    form, _, _, scans = check_any_image(content, "a")
    return form, scans
