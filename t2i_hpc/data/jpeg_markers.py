"""The markers of a JPEG file: where its scans begin, and oddities of its header that are harmless.

No pixel is decoded here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

_MARKER = re.compile(rb"\xff+[\x02-\xcf\xd9-\xfe]")  # none of compressed pixels, no restarts
_SOS, _EOI, _APP0, _APP14 = 0xDA, 0xD9, 0xE0, 0xEE
_BASELINE = (0xC0, 0xC1)
_YCCK = 2  # the largest color transform of Adobe's that is known


def scans_of(content: bytes) -> list[int]:
    """Return where the scans of a JPEG begin: the places of their 0xff 0xda.

    Thumbnails in the header and what lies behind the image's end are not counted.
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

    Segments are passed over by their length, compressed pixels by looking for the next marker.
    """
    place = 2
    while match := _MARKER.search(content, place):
        place, marker = match.start(), content[match.end() - 1]
        place = match.end() - 2
        if marker == _EOI or place + 4 > len(content):
            return
        yield place, marker
        place += 2 + int.from_bytes(content[place + 2 : place + 4], "big")
