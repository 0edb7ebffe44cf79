"""Damage for fuzzing: lists of small changes to bytes, drawn and shrunk by hypothesis."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from hypothesis import HealthCheck, settings, strategies

from t2i_hpc.common.errors import DataError

BLOCK = 512
Mutation = tuple[str, int, int]

# Field of a tar header: first byte, last byte + 1.
_FIELDS = (
    (0, 100),
    (100, 108),
    (124, 136),
    (136, 148),
    (156, 157),
    (157, 257),
    (257, 265),
    (345, 500),
)
_TEXTS = (
    b"",
    b"0",
    b"-1",
    b"-00000001000",
    b"77777777777",
    b"00000000000",
    b"00000001000",
    b"9zz 8",
    b"\xff" * 12,
    b"\xff" * 10 + b"\xfe\x00",
    b"\x80" + b"\0" * 10 + b"\x07",
    b"\x80\0\0\0\0\x20\0\0\0\0\0\0",
    b"\x80" + b"\x7f" * 11,
    b"/etc/passwd",
    b"../../a.json",
    b"a\nb.json",
    b"\xff\xfe.json",
    b"b.json",
    b"c.png",
    b"x" * 200,
    *(bytes([kind]) for kind in b"\x000123456789xgLKSXDNV"),
)
_BYTES = (0, 1, 0x20, 0x2D, 0x30, 0x37, 0x39, 0x5B, 0x7B, 0x7F, 0x80, 0xFF)
_KINDS = ("flip", "set", "add", "cut", "drop", "double", "swap", "long")


def mutations(*more: str) -> strategies.SearchStrategy[list[Mutation]]:
    """Lists of one to four changes; `more` names kinds that belong to a format ("field")."""
    kinds = strategies.sampled_from((*_KINDS, *more * 4))
    numbers = strategies.integers(0, (1 << 20) - 1)
    return strategies.lists(
        strategies.tuples(kinds, numbers, strategies.integers(0, 255)), min_size=1, max_size=4
    )


def mutate(content: bytes, changes: Sequence[Mutation]) -> bytes:
    """Return the content with the changes made to it, one after the other."""
    for change in changes:
        content = _mutated(content or b"\0", *change)
    return content


def fuzz(count: int, **options: Any) -> settings:
    """Settings that try exactly `count` inputs, the same ones each time."""
    return settings(
        max_examples=count,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        **options,
    )


def refused(work: Callable[[], object]) -> bool:
    """Return whether some work ends in the documented error; any other error passes."""
    try:
        work()
    except DataError as error:
        assert str(error)
        return True
    return False


def _mutated(content: bytes, kind: str, at: int, value: int) -> bytes:
    if kind == "field":
        return _with_field(content, at, value)
    if kind in ("drop", "double", "swap"):
        return _with_blocks(content, kind, at % len(content) // BLOCK * BLOCK)
    place = at % len(content)
    put = {
        "flip": bytes([content[place] ^ (value or 1)]),
        "set": bytes([_BYTES[value % len(_BYTES)]]),
        "add": content[place : place + 1] + bytes([value]) * (1 + at % 7),
        "long": content[place : place + 64] * (1 + value),
    }
    return content[:place] + (put[kind] + content[place + 1 :] if kind in put else b"")


def _with_blocks(content: bytes, kind: str, start: int) -> bytes:
    before, one, rest = content[:start], content[start : start + BLOCK], content[start + BLOCK :]
    put = {"drop": b"", "double": one + one, "swap": rest[:BLOCK] + one}
    return before + put[kind] + (rest[BLOCK:] if kind == "swap" else rest)


def _with_field(content: bytes, at: int, value: int) -> bytes:
    """Write a text into a field of one of a tar's headers, whose sum is put right again."""
    headers = [start for start in range(0, len(content), BLOCK) if _is_header(content, start)]
    if not headers:
        return content
    start = headers[at % len(headers)]
    first, end = _FIELDS[at // len(headers) % len(_FIELDS)]
    block = bytearray(content[start : start + BLOCK])
    block[first:end] = _TEXTS[value % len(_TEXTS)][: end - first].ljust(end - first, b"\0")
    return content[:start] + summed(bytes(block)) + content[start + BLOCK :]


def _is_header(content: bytes, start: int) -> bool:
    return content[start + 257 : start + 262] == b"ustar"


def summed(header: bytes) -> bytes:
    """Return a tar header with the right sum of its bytes."""
    total = sum(header[:148]) + sum(header[156:BLOCK]) + 8 * 0x20
    return header[:148] + b"%06o\0 " % total + header[156:]
