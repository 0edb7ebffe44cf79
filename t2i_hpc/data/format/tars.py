"""Tars as data: written so that the same samples give the same bytes, read with distrust.

A tar from elsewhere can hold links, devices and paths that lead out of its folder, and a copy
that broke off is like a shorter tar. Nothing is ever extracted, and every claim of a header is
checked before use. The standard library parses single headers; the walk is our own, since that of
``tarfile`` follows a header before anyone can check it: it reads as many bytes as a long name
claims to have, recurses into chains of headers, expands sparse files, and ends quietly at a damaged
header. Here nothing is read but headers and names, never more of them than a limit, and a
walk only goes forward.

In our own shards anything but a plain pair of an image and a JSON file is refused with the tar's
and the member's name. Images are checked by their first bytes alone, which say what they claim to
be; verify decodes them.
"""

from __future__ import annotations

import io
import json
import os
import re
import stat
import tarfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import numpy as np

from t2i_hpc.common.errors import DataError
from t2i_hpc.data.format.manifest import IMAGE_FORMATS
from t2i_hpc.data.format.tables import ROW, Index, checksum
from t2i_hpc.data.format.tar_headers import BLOCK, Headers, Member, any_header
from t2i_hpc.data.image_headers import check_image
from t2i_hpc.data.images import SUFFIXES

LARGEST_IMAGE, LARGEST_TEXT = 256 << 20, 1 << 20  # bytes; more is no image and no caption
MOST_MEMBERS = 1 << 20
_LONGEST_NAME = 64 << 10  # bytes of an extended header
_LONGEST_PADDING = 1 << 20  # empty bytes after the end mark
_PAX, _GLOBAL_PAX, _LONG_NAME = tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME
# Letters that break a line or a terminal, and bytes that are no UTF-8.
_UNFIT = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
# What else a pax header may change about a member makes tools disagree where it ends.
_TREACHEROUS = re.compile(r"size|hdrcharset|GNU\.sparse.*", re.DOTALL)
_COMPRESSED = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"PK\x03\x04": "zip",
}
_FORMAT_OF_SUFFIX = {suffix: form for form, suffix in SUFFIXES.items()}


@dataclass(frozen=True)
class SampleFiles:
    """One sample as it is stored: key without dots and slashes, image file, description."""

    key: str
    image: bytes
    image_format: str
    description: dict[str, object]


def write_tar(path: Path, records: Iterable[SampleFiles]) -> None:
    """Write a shard as webdataset's writer does, and flush it to the disk.

    Owner, mode, time and the order of members are fixed, so equal samples give equal bytes.
    """
    with path.open("wb") as stream:
        with tarfile.open(fileobj=stream, mode="w|", format=tarfile.USTAR_FORMAT) as tar:
            for record in records:
                text = json.dumps(record.description, sort_keys=True, ensure_ascii=False)
                files = {SUFFIXES[record.image_format]: record.image, "json": text.encode()}
                for suffix, content in sorted(files.items()):
                    member = tarfile.TarInfo(f"{record.key}.{suffix}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
        stream.flush()
        os.fsync(stream.fileno())


def index_tar(path: Path) -> Index:
    """Return one index row a sample of a shard, by walking the tar's headers.

    Raises:
        DataError: no whole tar, a member that is not half of a plain (image, JSON) pair, or an
            image that is of another format than its name says or claims too many pixels.
    """
    members = [_checked(member, path) for member in members_of(path)]
    with path.open("rb") as stream:
        rows = [_row(pair, stream.fileno(), path) for pair in _pair(members, path)]
    return np.array(rows, dtype=ROW)


def sample_names(path: Path) -> list[str]:
    """Return the name of each sample's image member, in the order of :func:`index_tar`."""
    return [member.name for member in members_of(path) if not member.name.endswith(".json")]


def _checked(member: Member, path: Path) -> Member:
    name = PurePosixPath(member.name)
    if name.suffix[1:] not in (*_FORMAT_OF_SUFFIX, "json"):
        raise DataError(
            f"{path} holds {member.name!r}; allowed are .json, ."
            + ", .".join(_FORMAT_OF_SUFFIX)
            + ": build it again"
        )
    largest = LARGEST_TEXT if name.suffix == ".json" else LARGEST_IMAGE
    if member.size > largest:
        raise DataError(
            f"{path} holds {member.name!r} of {member.size:,} bytes, more than the {largest:,} "
            "that are read; build it again without it"
        )
    return member


def _pair(members: list[Member], path: Path) -> list[tuple[Member, Member]]:
    """Return (image, description) of each sample, in the order of the images."""
    images: dict[str, Member] = {}
    texts: dict[str, Member] = {}
    for member in members:
        key, suffix = member.name.rsplit(".", 1)
        found = texts if suffix == "json" else images
        if key in found:
            raise DataError(f"{path} holds {member.name!r} twice; build it again")
        found[key] = member
    for key in images.keys() ^ texts.keys():
        raise DataError(f"{path} holds {key!r} without its image or its .json; build it again")
    return [(image, texts[key]) for key, image in images.items()]


def _row(pair: tuple[Member, Member], descriptor: int, path: Path) -> tuple[int, ...]:
    image, text = pair
    content, description = (
        os.pread(descriptor, member.size, member.offset_data) for member in pair
    )
    form = _FORMAT_OF_SUFFIX[image.name.rsplit(".", 1)[1]]
    check_image(content, form, f"{path}, member {image.name!r},")
    return (
        image.offset_data,
        text.offset_data,
        checksum(content, description),
        image.size,
        text.size,
        IMAGE_FORMATS.index(form),
    )


# --- any tar


def members_of(path: Path, folders: bool = False) -> list[Member]:
    """Walk the headers of a whole tar; every member is a plain file with a name inside it.

    Args:
        path: the tar.
        folders: pass over the entries of folders, which `tar` itself writes, instead of
            refusing them.

    Raises:
        DataError: a damaged, cut, compressed or concatenated tar, a link, a device, a path that
            leads out, or a header that claims what cannot be.
    """
    try:
        with _opened(path) as tar:
            members = _walk(tar)
            return [_plain(one, path) for one in members if not (folders and one.is_folder)]
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error


@dataclass
class Scan:
    """What a tar that others made holds, as far as it can be read.

    Attributes:
        members: plain files, in order.
        unfit: names of members that are not taken, with the reason.
        problem: why the walk ended before the tar's end; empty: it did not.
        cut: name of the member at which it ended, as far as it is known.
        ended: whether the tar has an end mark, which a tar that was cut lacks.
    """

    members: list[Member] = field(default_factory=list)
    unfit: list[tuple[str, str]] = field(default_factory=list)
    problem: str = ""
    cut: str = ""
    ended: bool = True


def scan(path: Path) -> Scan:
    """Walk a tar that others made: what cannot be taken is listed instead of refused.

    A tar that ends behind a whole member, without an end mark, gives all its members.
    """
    found = Scan()
    try:
        with _opened(path) as tar:
            found.members.extend(members_in_order(tar, found))
    except OSError as error:
        found.problem = f"cannot read {path}: {error.strerror or error}"
    except DataError as error:  # no file
        found.problem = str(error)
    return found


def members_in_order(tar: OpenTar, found: Scan) -> Iterator[Member]:
    """Give the plain files of a tar that others made; `found` is told what else there is."""
    try:
        if not tar.size:
            raise DataError(f"{tar.path} is an empty file: fetch or build it again")
        for member in _walk(tar, found):
            if member.usual or (not member.is_folder and _is_taken(member, tar.path, found)):
                yield member
    except DataError as error:
        found.problem = str(error)


def compression_of(path: Path) -> str:
    """Return the name of the compression of a file by its first bytes; empty: none is known.

    Raises:
        DataError: the file cannot be read.
    """
    try:
        with path.open("rb") as stream:
            block = stream.read(BLOCK)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error
    return _compression(block)


def _compression(block: bytes) -> str:
    return next((name for mark, name in _COMPRESSED.items() if block.startswith(mark)), "")


@dataclass
class OpenTar:
    """A tar of `size` bytes, from which any bytes can be read."""

    path: Path | str
    descriptor: int
    size: int

    def damaged(self, reason: str, offset: int) -> DataError:
        """Return the error of a tar that is no whole tar."""
        return DataError(
            f"{self.path} is not a whole tar ({reason} at byte {offset:,}); copy or build it again"
        )

    def read(self, offset: int, count: int) -> bytes:
        """Return `count` bytes from `offset` on, fewer at the end."""
        return os.pread(self.descriptor, count, offset)


@contextmanager
def _opened(path: Path) -> Iterator[OpenTar]:
    if not stat.S_ISREG(path.stat().st_mode):
        raise DataError(f"{path} is no file (a folder, pipe or device): name a tar")
    with path.open("rb") as stream:
        yield OpenTar(path, stream.fileno(), os.fstat(stream.fileno()).st_size)


def _is_taken(member: Member, path: Path | str, found: Scan) -> bool:
    try:
        _plain(member, path)
    except DataError as error:
        found.unfit.append((ascii(member.name)[1:-1], str(error)))
        return False
    return True


def _walk(tar: OpenTar, found: Scan | None = None) -> Iterator[Member]:
    """Give the members of a tar.

    Args:
        tar: what is walked.
        found: notes a tar that ends without an end mark, which is refused otherwise.
    """
    offset, count, headers = 0, 0, Headers()
    long_name: str | None = None
    while True:
        block = tar.read(offset, BLOCK)
        member = headers.usual(block, offset) or _header(
            tar, block, offset, found if long_name is None else None
        )
        if member is None:
            break
        count += 1
        if count > MOST_MEMBERS:
            raise DataError(f"{tar.path} has over {MOST_MEMBERS:,} members: make smaller tars")
        start = offset + BLOCK
        end = start + -(-member.size // BLOCK) * BLOCK
        if member.size < 0 or end > tar.size:
            if found is not None:
                found.cut = long_name or member.name
            raise tar.damaged(f"{member.name!r} claims {member.size:,} bytes", offset)
        if member.usual and long_name is None:
            yield member
        elif member.kind == _GLOBAL_PAX:
            _check_global(tar, member, start)
        elif member.kind in (_PAX, _LONG_NAME):
            if long_name is not None:
                raise tar.damaged("a second header for one member", offset)
            long_name = _long_name(tar, member, start)
        else:
            yield member._replace(name=long_name or member.name, usual=False)
            long_name = None
        offset = end
    if long_name is not None:
        raise tar.damaged("a name without its member", offset)
    if found is None or found.ended:
        _check_end(tar, offset)


def _header(tar: OpenTar, block: bytes, offset: int, found: Scan | None) -> Member | None:
    """Return what a header that is not usual says; None at the end."""
    if found is not None and offset and not any(block) and tar.size - offset < 2 * BLOCK:
        found.ended = False
        return None
    if block == bytes(BLOCK):
        return None
    try:
        return any_header(block, offset)
    except (tarfile.HeaderError, ValueError, OverflowError) as error:
        if not offset and (name := _compression(block)):
            raise DataError(
                f"{tar.path} is compressed ({name}), so no sample can be read by its place: "
                "unpack it first"
            ) from error
        raise tar.damaged(str(error), offset) from error


def _long_name(tar: OpenTar, member: Member, start: int) -> str:
    """Return the name that an extended header gives to the next member; empty: none."""
    if member.size > _LONGEST_NAME:
        raise tar.damaged(f"a name of {member.size:,} bytes", start - BLOCK)
    content = tar.read(start, member.size + -member.size % BLOCK)
    if any(content[member.size :]):
        raise tar.damaged("a name that is longer than it claims", start - BLOCK)
    content = content[: member.size]
    records = {"path": content.rstrip(b"\0").decode("utf-8", "surrogateescape")}
    if member.kind == _PAX:
        records = _pax_records(tar, content, start)
    if records.get("path") == "":
        raise tar.damaged("an empty name", start - BLOCK)
    for key in records:
        if _TREACHEROUS.fullmatch(key):
            raise DataError(
                f"{tar.path} changes {key!r} of a member in a pax header at byte {start:,}: make "
                "the tar again without sparse or outsized files"
            )
    return records.get("path", "")


def _check_global(tar: OpenTar, member: Member, start: int) -> None:
    """Skip a header about all members, such as git's commit or a comment.

    Raises:
        DataError: it says more, which tools take differently.
    """
    if member.size > _LONGEST_NAME:
        raise tar.damaged(f"a global header of {member.size:,} bytes", start - BLOCK)
    for key in _pax_records(tar, tar.read(start, member.size), start):
        if key in ("path", "linkpath") or _TREACHEROUS.fullmatch(key):
            raise DataError(
                f"{tar.path} changes {key!r} of all members in a global pax header at byte "
                f"{start:,}: make the tar again without it"
            )


def _pax_records(tar: OpenTar, content: bytes, start: int) -> dict[str, str]:
    """Parse lines such as ``18 path=some/name``, whose number is their length in bytes."""
    records: dict[str, str] = {}
    while content:
        digits = content[:8].partition(b" ")[0]
        length = int(digits) if digits.isdigit() else 0
        line, content = content[:length], content[length:]
        key, equals, value = line[len(digits) + 1 : -1].partition(b"=")
        if not equals or not line.endswith(b"\n") or len(line) != length:
            raise tar.damaged("a pax header that cannot be read", start)
        records[key.decode("utf-8", "surrogateescape")] = value.decode("utf-8", "surrogateescape")
    return records


def _check_end(tar: OpenTar, offset: int) -> None:
    """Refuse a tar without its end mark of two empty blocks, or with anything after it."""
    rest = tar.size - offset
    if rest < 2 * BLOCK:
        raise tar.damaged("it breaks off", offset)
    if rest > _LONGEST_PADDING or any(tar.read(offset, rest)):
        raise DataError(
            f"{tar.path} continues after its end mark at byte {offset:,}, like several tars in one "
            "file: unpack it and make one tar, or keep them apart"
        )


def _plain(member: Member, path: Path | str) -> Member:
    if member.usual:
        return member
    parts = member.name.split("/")
    if member.kind not in (tarfile.REGTYPE, tarfile.AREGTYPE) or member.name.endswith("/"):
        raise DataError(f"{path} holds {member.name!r}, which is no plain file; build it again")
    if _UNFIT.search(member.name):
        raise DataError(
            f"{path} holds {member.name!r}, a name with control characters or not in UTF-8; "
            "rename it and make the tar again"
        )
    if not parts[0] or ".." in parts or parts[-1] == ".":
        raise DataError(f"{path} holds {member.name!r}, a path out of its folder; build it again")
    return member
