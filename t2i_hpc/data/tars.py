"""Tars as data: written so that the same samples give the same bytes, read with distrust.

A tar from elsewhere can hold links, devices and paths that lead out of its folder, and a copy
that broke off looks like a shorter tar. Nothing is ever extracted; what is not a plain pair of
an image and a JSON file is refused with the tar's and the member's name.
"""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import xxhash

from t2i_hpc.common.errors import DataError
from t2i_hpc.data.images import SUFFIXES
from t2i_hpc.data.manifest import IMAGE_FORMATS, ROW, Index

_FORMAT_OF_SUFFIX = {suffix: form for form, suffix in SUFFIXES.items()}
_BLOCK = 512


@dataclass(frozen=True)
class Record:
    """One sample as it is stored: key without dots and slashes, image file, description."""

    key: str
    image: bytes
    image_format: str
    description: dict[str, object]


def write_tar(path: Path, records: Iterable[Record]) -> None:
    """Write a WebDataset shard; owner, mode and time are fixed, so equal samples, equal bytes."""
    with path.open("wb") as stream:
        with tarfile.open(fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT) as tar:
            for record in records:
                text = json.dumps(record.description, sort_keys=True, ensure_ascii=False)
                _add(tar, f"{record.key}.{SUFFIXES[record.image_format]}", record.image)
                _add(tar, f"{record.key}.json", text.encode())
        stream.flush()
        os.fsync(stream.fileno())


def index_tar(path: Path) -> Index:
    """Return one index row a sample of a shard, by walking the tar's headers.

    Raises:
        DataError: no whole tar, or a member that is not half of a plain (image, JSON) pair.
    """
    members = [_checked(member, path) for member in members_of(path)]
    with path.open("rb") as stream:
        rows = [_row(pair, stream.fileno()) for pair in _pair(members, path)]
    return np.array(rows, dtype=ROW)


def checksum(image: bytes, text: bytes) -> int:
    """Return what an index row keeps of a sample's two files: 64 bits of XXH3.

    It takes a microsecond, so every read is compared with it; the tar's SHA-256 guards against
    more than accidents.
    """
    return xxhash.xxh3_64_intdigest(text, seed=xxhash.xxh3_64_intdigest(image))


def sample_names(path: Path) -> list[str]:
    """Return the name of each sample's image member, in the order of :func:`index_tar`."""
    return [member.name for member in members_of(path) if not member.name.endswith(".json")]


def members_of(path: Path, folders: bool = False) -> list[tarfile.TarInfo]:
    """Walk the headers of a whole tar; every member is a plain file with a name inside it.

    Args:
        path: the tar.
        folders: pass over the entries of folders, which `tar` itself writes, instead of
            refusing them.

    Raises:
        DataError: a damaged or cut tar, a link, a device, or a path that leads out.
    """
    try:
        with tarfile.open(path, mode="r:") as tar:
            members = [_plain(member, path) for member in tar if not (folders and member.isdir())]
            _check_end(path, tar.offset)
    except (tarfile.TarError, OSError) as error:
        raise DataError(f"{path} is not a whole tar ({error}); copy or build it again") from error
    return members


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size, member.mode = len(content), 0o644
    tar.addfile(member, io.BytesIO(content))


def _plain(member: tarfile.TarInfo, path: Path) -> tarfile.TarInfo:
    name = PurePosixPath(member.name)
    if not member.isreg() or member.issparse():
        raise DataError(f"{path} holds {member.name!r}, which is no plain file; build it again")
    if name.is_absolute() or ".." in name.parts or not name.stem:
        raise DataError(f"{path} holds {member.name!r}, a path out of its folder; build it again")
    return member


def _checked(member: tarfile.TarInfo, path: Path) -> tarfile.TarInfo:
    name = PurePosixPath(member.name)
    if name.suffix[1:] not in (*_FORMAT_OF_SUFFIX, "json"):
        raise DataError(
            f"{path} holds {member.name!r}; allowed are .json, ."
            + ", .".join(_FORMAT_OF_SUFFIX)
            + ": build it again"
        )
    return member


def _check_end(path: Path, offset: int) -> None:
    """Refuse a tar that stops without its end mark of two empty blocks."""
    with path.open("rb") as stream:
        stream.seek(offset)
        mark = stream.read(2 * _BLOCK)
    if mark != bytes(2 * _BLOCK):
        raise DataError(
            f"{path} breaks off or is damaged after {offset:,} bytes; copy or build it again"
        )


def _pair(
    members: list[tarfile.TarInfo], path: Path
) -> list[tuple[tarfile.TarInfo, tarfile.TarInfo]]:
    """Return (image, description) of each sample, in the order of the images."""
    images: dict[str, tarfile.TarInfo] = {}
    texts: dict[str, tarfile.TarInfo] = {}
    for member in members:
        key, suffix = member.name.rsplit(".", 1)
        found = texts if suffix == "json" else images
        if key in found:
            raise DataError(f"{path} holds {member.name!r} twice; build it again")
        found[key] = member
    for key in images.keys() ^ texts.keys():
        raise DataError(f"{path} holds {key!r} without its image or its .json; build it again")
    return [(image, texts[key]) for key, image in images.items()]


def _row(pair: tuple[tarfile.TarInfo, tarfile.TarInfo], descriptor: int) -> tuple[int, ...]:
    image, text = pair
    parts = (os.pread(descriptor, member.size, member.offset_data) for member in pair)
    form = IMAGE_FORMATS.index(_FORMAT_OF_SUFFIX[image.name.rsplit(".", 1)[1]])
    return (image.offset_data, text.offset_data, checksum(*parts), image.size, text.size, form)
