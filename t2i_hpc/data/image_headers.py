"""What the headers of image files claim, read without any decoder.

A file of a hundred bytes may claim billions of pixels. JPEG's markers are read by libjpeg-turbo,
the fixed fields of PNG and WebP directly, in about a microsecond, so that bombs, other formats and
misnamed files are refused when a shard is indexed and not when a training meets them.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator

import numpy as np
import simplejpeg

from t2i_hpc.common.errors import DataError

MAX_PIXELS = 64 * 1024 * 1024
_MARKER = re.compile(rb"\xff+[\x02-\xcf\xd9-\xfe]")  # none of compressed pixels, no restarts
_SOS, _EOI, _APP0, _APP14 = 0xDA, 0xD9, 0xE0, 0xEE
_BEGIN = bytes([0xFF, _SOS])
_BEGIN_SCAN = np.uint16(_SOS << 8 | 0xFF)  # as a little-endian pair
_BASELINE = (0xC0, 0xC1)
_YCCK = 2  # the largest color transform of Adobe's that is known
# What stands before pixels that have EXIF or a profile, and in how many bytes it is looked for.
_NOTED = {
    "jpeg": (b"Exif\0", b"ICC_PROFILE"),
    "png": (b"eXIf", b"iCCP"),
    "webp": (b"EXIF", b"ICCP", b"VP8X"),
}
_HEAD = 4096
_PNG = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"
_HEIC = (b"heic", b"heix", b"mif1", b"msf1", b"hevc")
_OTHERS = {
    b"GIF8": "a GIF image",
    b"BM": "a BMP image",
    b"II*\0": "a TIFF image",
    b"MM\0*": "a TIFF image",
    b"\xff\x0a": "a JPEG XL image",
    b"\0\0\0\x0cJXL ": "a JPEG XL image",
    b"\0\0\0\x0cjP  ": "a JPEG 2000 image",
    b"8BPS": "a Photoshop file",
    b"%PDF": "a PDF document",
    b"version https://git-lfs": "a pointer of Git LFS (run git lfs pull)",
}
_MOST_SCANS = 100  # of a progressive JPEG, each a pass over all pixels; cameras write about ten


def dimensions(content: bytes) -> tuple[str, int, int]:
    """Return format (jpeg, png or webp), width and height as an image file claims them.

    Raises:
        ValueError: no such file, or one that breaks off in its header.
    """
    if content.startswith(b"\xff\xd8"):
        return ("jpeg", *_jpeg(content))
    try:
        if content.startswith(_PNG):
            return ("png", *struct.unpack_from(">II", content, len(_PNG)))
        if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
            return ("webp", *_webp(content))
    except struct.error as error:
        raise ValueError("it breaks off in its header") from error
    raise ValueError("it is no JPEG, PNG or WebP image")


def other_format(content: bytes) -> str:
    """Return what a file is that is no JPEG, PNG or WebP image, with its article, or ""."""
    if content[4:8] == b"ftyp":
        brands = content[8:64]
        if b"avif" in brands or b"avis" in brands:
            return "an AVIF image"
        return "a HEIC image" if any(one in brands for one in _HEIC) else "a video (MP4)"
    if content.startswith(b"\x89PNG") and content[24:26] == b"\x10\0":
        return "a 16-bit grey PNG image"
    start = content[:256].lstrip().lower()
    if start.startswith((b"<!doctype html", b"<html")):
        return "an HTML page"
    if start.startswith((b"<svg", b"<?xml")):
        return "an SVG image"
    found = (name for mark, name in _OTHERS.items() if content.startswith(mark))
    return next(found, "" if content else "an empty file")


def check_image(content: bytes, form: str, name: str) -> None:
    """Refuse what is no image of the format `form` or claims more than is ever decoded.

    Raises:
        DataError: another format, too many pixels or scans; names `name`.
    """
    found = check_any_image(content, name)[0]
    if found != form:
        raise DataError(f"{name} is called {form} but is {found}; name it by what it is")


def check_any_image(content: bytes, name: str) -> tuple[str, int, int, int]:
    """Refuse what is no image or claims more than is ever decoded.

    Returns:
        Format (jpeg, png or webp), width, height, and in how many places of a JPEG a scan may
        begin; 0 for other formats.

    Raises:
        DataError: no such image, too many pixels or scans; names `name`.
    """
    try:
        form, width, height = dimensions(content)
    except ValueError as error:
        raise DataError(f"{name} is no image ({error}); build it again without it") from error
    if not 0 < width * height <= MAX_PIXELS:
        raise DataError(
            f"{name} claims {width:,} by {height:,} pixels, while 1 to {MAX_PIXELS:,} are "
            "decoded; leave it out"
        )
    # Inside of compressed pixels 0xff is never followed by 0xda: each pair begins a scan, except
    # in what cameras hide before and behind the image, which is only then excluded.
    scans = _most_scans(content) if form == "jpeg" else 0
    if scans > _MOST_SCANS and len(_scans_of(content)) > _MOST_SCANS:
        raise DataError(
            f"{name} has more than {_MOST_SCANS} scans, which only serve to keep decoders busy; "
            "leave it out"
        )
    return form, width, height, scans


def has_notes(content: bytes, form: str, scans: int) -> bool:
    """Whether an image file may have notes, so that :func:`notes_of` is worth its time.

    Args:
        content: the file.
        form: its format.
        scans: what :func:`check_any_image` returns. Where there is one place, the header ends
            there, and what looks like notes behind it is pixels.
    """
    end = content.find(_BEGIN, 0, _HEAD) if scans == 1 else -1
    head = content[: _HEAD if end < 0 else end]
    return any(mark in head for mark in _NOTED[form])


def _jpeg(content: bytes) -> tuple[int, int]:
    try:
        height, width, _, _ = simplejpeg.decode_jpeg_header(content, strict=False)
    except Exception as error:  # on damaged headers it raises KeyError and more
        raise ValueError("its JPEG header is damaged") from error
    return width, height


def _webp(content: bytes) -> tuple[int, int]:
    """Return width and height of the canvas from the first chunk of a WebP file."""
    chunk = content[12:16]
    if chunk == b"VP8X":  # 24 bits each, less one
        low, high, *rest = struct.unpack_from("<HBHB", content, 24)
        return 1 + low + (high << 16), 1 + rest[0] + (rest[1] << 16)
    if chunk == b"VP8L":  # 14 bits each, less one
        (bits,) = struct.unpack_from("<I", content, 21)
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    if chunk == b"VP8 " and content[23:26] == b"\x9d\x01\x2a":  # 14 bits each, 2 of scaling
        width, height = struct.unpack_from("<HH", content, 26)
        return width & 0x3FFF, height & 0x3FFF
    raise ValueError("it is no WebP image that is offered")


def _most_scans(content: bytes) -> int:
    """Return how often 0xff 0xda stands anywhere: at even places and at odd ones.

    Pairs of bytes are compared at once: six times as fast as bytes.count, in half the memory of
    comparing each byte.
    """
    even = np.frombuffer(content, "<u2", len(content) // 2)
    odd = np.frombuffer(content, "<u2", (len(content) - 1) // 2, 1)
    return int(np.count_nonzero(even == _BEGIN_SCAN) + np.count_nonzero(odd == _BEGIN_SCAN))


def _scans_of(content: bytes) -> list[int]:
    """Return where the scans of a JPEG begin: the places of their 0xff 0xda.

    Thumbnails in the header and what is behind the image's end are not counted.
    """
    return [place for place, marker in _markers(content) if marker == _SOS]


def mended(content: bytes) -> bytes:
    """Return a JPEG without the oddities of its header that decoders only warn of.

    They are a baseline scan that claims the coefficients 0 to 0 instead of 0 to 63, JFIF of an
    unknown revision, and a color transform of Adobe's that is not known. Viewers show such
    files. The pixels that are decoded are the same; what remains to be warned of is damage.
    """
    found = bytearray(content)
    baseline = False
    for place, marker in _markers(content):
        if marker in _BASELINE:
            baseline = True
        elif marker == _APP0 and found[place + 4 : place + 9] == b"JFIF\0":
            found[place + 9 : place + 11] = b"\1\1"
        elif marker == _APP14 and found[place + 4 : place + 9] == b"Adobe":
            if found[place + 15] > _YCCK:
                found[place + 15] = 1  # YCbCr, as decoders assume
        elif marker == _SOS and baseline:
            end = place + 2 + int.from_bytes(content[place + 2 : place + 4], "big")
            found[end - 3 : end] = b"\0\x3f\0"
    return bytes(found)


def _markers(content: bytes) -> Iterator[tuple[int, int]]:
    """Give place and kind of a JPEG's markers up to the end of the image.

    Segments are skipped by their length, compressed pixels by a search for the next marker.
    """
    place = 2
    while match := _MARKER.search(content, place):
        place, marker = match.start(), content[match.end() - 1]
        place = match.end() - 2
        if marker == _EOI or place + 4 > len(content):
            return
        yield place, marker
        place += 2 + int.from_bytes(content[place + 2 : place + 4], "big")
