"""Headers of a tar's members: the usual ones by a comparison, all others by the standard library.

One program wrote all members of a tar, so most headers differ in name, size, time and sum alone.
What stands behind the sum (kind, format, owner, device) is compared as a whole with what was found
to be that of a plain file before, and a name that the pattern takes needs no other check. That is
two microseconds; ``tarfile`` parses whatever is not usual.
"""

from __future__ import annotations

import re
import tarfile
import zlib
from typing import NamedTuple

BLOCK = 512
_BEHIND = 156  # where the sum of a header ends
# A path inside its folder in printable ASCII, none of whose parts begins with a dot.
_PATH = rb"(?:\./)?(?:[ -\-0-~][ -.0-~]*/)*[ -\-0-~][ -.0-~]*"
# Name, then mode, owner, group, size, time and sum as GNU tar and Python write them. All behind
# the name has a fixed length, so the pattern takes names of up to 100 bytes.
_USUAL = re.compile(b"(" + _PATH + rb")\0*(?:[0-7]{7}\0){3}([0-7]{11})\0[0-7]{11}\0([0-7]{6})\0 ")
_NO_DEVICE = (bytes(17), b"0000000\0" * 2 + b"\0")
_SPACES = 8 * 32  # the sum of a header counts its own eight bytes as spaces
_NOTHING = bytes(BLOCK + 1)  # longer than any header, so none ends with it


class Member(NamedTuple):
    """A member of a tar.

    Attributes:
        name: its path in the tar.
        size: bytes of its content, as its header claims.
        offset_data: where that begins.
        kind: one of tarfile's types.
        usual: whether it is known to be a plain file whose path does not lead out.
    """

    name: str
    size: int
    offset_data: int
    kind: bytes = tarfile.REGTYPE
    usual: bool = False

    @property
    def is_folder(self) -> bool:
        """Whether it is a folder; with a size, tools disagree where that ends."""
        return self.kind == tarfile.DIRTYPE and not self.size


class Headers:
    """Parses the headers of one tar."""

    def __init__(self) -> None:
        self._behind = _NOTHING  # what the last usual header has behind its sum

    def usual(self, block: bytes, offset: int) -> Member | None:
        """Parse the header of a plain file with a short name; None: it is not usual.

        The sum of a header's bytes is compared by way of Adler-32, which holds it modulo 65,521.

        Args:
            block: the header.
            offset: where it stands in the tar.
        """
        found = _USUAL.fullmatch(block, 0, _BEHIND)
        if found is None or not (block.endswith(self._behind) or self._learn(block)):
            return None
        name, size, total = found.groups()
        expected = int(total, 8) + sum(block[148:_BEHIND]) - _SPACES + 1
        if zlib.adler32(block) & 0xFFFF != expected % 65521:
            return None
        return Member(name.decode(), int(size, 8), offset + BLOCK, tarfile.REGTYPE, True)

    def _learn(self, block: bytes) -> bool:
        """Whether a header behind its sum is that of a plain file; the next are compared with it.

        That is: no link, no device, and no beginning of the name.
        """
        plain = block[156:157] == tarfile.REGTYPE and block[257:262] == b"ustar"
        if not plain or block[329:346] not in _NO_DEVICE or len(block) != BLOCK:
            return False
        self._behind = block[_BEHIND:]
        return True


def any_header(block: bytes, offset: int) -> Member:
    """Parse a header of any kind.

    Raises:
        tarfile.HeaderError, ValueError, OverflowError: it is damaged, or none.
    """
    found = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    return Member(found.name, found.size, offset + BLOCK, found.type)
