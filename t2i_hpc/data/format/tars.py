"""Tars as data: written so that the same samples give the same bytes, read with distrust.

A tar from elsewhere can hold links, devices and paths that lead out of its folder, and a copy
that broke off looks like a shorter tar. Nothing is ever extracted; what is not a plain pair of
an image and a JSON file is refused with the tar's and the member's name. Images are looked at
by their first bytes alone, which says what they claim to be; verify decodes them.
"""

from __future__ import annotations

import json
import os
import tarfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import xxhash

from t2i_hpc.common.errors import DataError
from t2i_hpc.data.format.index import ROW, Index
from t2i_hpc.data.format.manifest import IMAGE_FORMATS
from t2i_hpc.data.format.tar_members import LARGEST_IMAGE, LARGEST_TEXT, members_of
from t2i_hpc.data.image_headers import check_image
from t2i_hpc.data.images import SUFFIXES

__all__ = ["Record", "checksum", "index_tar", "members_of", "sample_names", "write_tar"]

_FORMAT_OF_SUFFIX = {suffix: form for form, suffix in SUFFIXES.items()}


@dataclass(frozen=True)
class Record:
    """One sample as it is stored: key without dots and slashes, image file, description."""

    key: str
    image: bytes
    image_format: str
    description: dict[str, object]


def tar_writer() -> Any:
    """Return webdataset's writer of tars; it brings torch along, which nothing else here needs."""
    from webdataset.writer import TarWriter

    return TarWriter


def write_tar(path: Path, records: Iterable[Record]) -> None:
    """Write a shard with webdataset's writer, and flush it to the disk.

    Owner, mode and time are fixed, so equal samples give equal bytes.
    """
    fixed = {"user": "", "group": "", "mode": 0o644, "mtime": 0}
    with path.open("wb") as stream:
        with tar_writer()(stream, encoder=False, **fixed) as tar:
            for record in records:
                text = json.dumps(record.description, sort_keys=True, ensure_ascii=False)
                image = {SUFFIXES[record.image_format]: record.image}
                tar.write({"__key__": record.key, **image, "json": text.encode()})
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


def checksum(image: bytes, text: bytes) -> int:
    """Return what an index row keeps of a sample's two files: 64 bits of XXH3.

    It takes a microsecond, so every read is compared with it; the tar's SHA-256 guards against
    more than accidents.
    """
    return xxhash.xxh3_64_intdigest(text, seed=xxhash.xxh3_64_intdigest(image))


def sample_names(path: Path) -> list[str]:
    """Return the name of each sample's image member, in the order of :func:`index_tar`."""
    return [member.name for member in members_of(path) if not member.name.endswith(".json")]


def _checked(member: tarfile.TarInfo, path: Path) -> tarfile.TarInfo:
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


def _row(
    pair: tuple[tarfile.TarInfo, tarfile.TarInfo], descriptor: int, path: Path
) -> tuple[int, ...]:
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
