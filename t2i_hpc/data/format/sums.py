"""Hashes of whole tars, reckoned while their bytes pass.

Tars that are built here have a SHA-256, which nobody can forge. An index of tars in place may have
XXH3 of 128 bits instead: no accident escapes it, it takes a seventh of the time, but who may write
the tars could make others of the same hash. Both stand as 64 hexadecimal digits in the tables.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Protocol

import xxhash

SHA256, XXH128 = "sha256", "xxh128"
CHECKSUMS = {SHA256: "SHA-256", XXH128: "XXH128"}  # and their names for people
_BLOCK = 1 << 20


class TarSum(Protocol):
    """The hash of what came so far."""

    def update(self, content: bytes | memoryview, /) -> None:
        """Take what follows."""

    def hexdigest(self) -> str:
        """Return it in 64 digits."""


class _Xxh128:
    def __init__(self) -> None:
        self._sum = xxhash.xxh3_128()

    def update(self, content: bytes | memoryview, /) -> None:
        self._sum.update(content)

    def hexdigest(self) -> str:
        return self._sum.hexdigest() + "0" * 32  # the tables have room for a SHA-256


def new_sum(checksum: str) -> TarSum:
    """Return the hash of nothing yet.

    Args:
        checksum: one of :data:`CHECKSUMS`.
    """
    return hashlib.sha256() if checksum == SHA256 else _Xxh128()


def sum_of_file(path: Path, checksum: str) -> str:
    """Return the hash of a file in a folder here.

    Raises:
        OSError: it cannot be read.
    """
    found = new_sum(checksum)
    with path.open("rb") as stream:
        while content := stream.read(_BLOCK):
            found.update(content)
    return found.hexdigest()
