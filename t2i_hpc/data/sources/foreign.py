"""Tars that others made (img2dataset, webdataset's writers): images kept byte for byte.

A split of ours has one ``<key>.json`` with captions, class and key beside each image, in the
same tar. Tars of others have captions in ``.txt`` files or in JSON of another shape, so an index
alone cannot describe them, and a format with two kinds of split would make every reader ask
which one it has. Hence the samples are packed anew: the image's bytes are copied as they are
(not scaled, so ``size`` and ``format`` do not count) and the description is written beside
them. It costs the space of the images once more. Only photographs that EXIF turns are encoded
anew, losslessly as png, since readers of shards do not turn.

A sample is all members that share a name up to its last dot: one image and

- ``.txt``: one caption a line; or
- ``.json``: an object with ``captions`` (a list) or ``caption`` or ``text`` (a string); its
  whole-number ``class``, if any, is kept.

If both give captions, those of the ``.txt`` are taken. Members of other kinds are passed over.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

from t2i_hpc.common.errors import DataError
from t2i_hpc.config.data import ShardsConfig
from t2i_hpc.data.sources.sample import (
    IMAGE_FORMATS_OF_SUFFIX,
    Packed,
    SourceSample,
    captions_in,
    folder_at,
    non_empty,
    refuse,
)
from t2i_hpc.data.tars import members_of

_LARGEST_IMAGE, _LARGEST_TEXT = 256 << 20, 1 << 20  # bytes; more is no image and no caption
_Members = dict[str, tarfile.TarInfo]


def read_foreign(config: ShardsConfig) -> Sequence[SourceSample]:
    """Read the captions of all ``*.tar`` in a folder, in the order of their names.

    The key of a sample is ``<name of the tar>/<name in the tar>``, since names are often used
    again in each tar.

    Raises:
        DataError: no tars, a damaged or hostile tar, an image without caption or a caption
            without image.
    """
    folder = folder_at(config.images, "images", "a folder of tars")
    paths = sorted(folder.glob("*.tar"))
    if not paths:
        raise DataError(f"{folder} has no .tar files: name the folder that holds the tars")
    if config.captions:
        raise DataError("captions= does not belong to source=index: captions are in the tars")
    samples = [sample for path in paths for sample in _read_tar(path)]
    if not samples:
        raise DataError(f"the tars of {folder} hold no images: name another folder")
    return [
        replace(sample, class_id=place) if sample.class_id < 0 else sample
        for place, sample in enumerate(samples)
    ]


def _read_tar(path: Path) -> Iterator[SourceSample]:
    images, texts = _sorted_out(path)
    refuse(
        [name for name in images if not texts.get(name)],
        f"images of {path} have no .txt or .json",
        "make the tar again with captions",
    )
    refuse(
        sorted(texts.keys() - images.keys()),
        f"captions of {path} have no image",
        "make the tar again without them",
    )
    with path.open("rb") as stream:
        for name, image in images.items():
            captions, class_id = _described(stream, texts[name], f"{path}, member {name}")
            packed = Packed(image.offset_data, image.size)
            yield SourceSample(f"{path.stem}/{name}", path, captions, class_id, packed=packed)


def _sorted_out(path: Path) -> tuple[_Members, dict[str, _Members]]:
    """Return the image of each name, and its .txt and .json by suffix."""
    images: _Members = {}
    texts: dict[str, _Members] = {}
    for member in members_of(path, folders=True):
        name, suffix = member.name.removeprefix("./").rpartition(".")[0], _suffix(member)
        if suffix in IMAGE_FORMATS_OF_SUFFIX:
            _take(images, name, member, _LARGEST_IMAGE, path)
        elif suffix in (".txt", ".json"):
            _take(texts.setdefault(name, {}), suffix, member, _LARGEST_TEXT, path)
    return images, texts


def _take(found: _Members, name: str, member: tarfile.TarInfo, largest: int, path: Path) -> None:
    if name in found:
        raise DataError(
            f"{path} holds {member.name!r} beside {found[name].name!r}, of the same kind and name: "
            "rename one"
        )
    if member.size > largest:
        raise DataError(
            f"{path} holds {member.name!r} of {member.size:,} bytes, more than the {largest:,} "
            "that are read: leave it out"
        )
    found[name] = member


def _described(stream: IO[bytes], texts: _Members, where: str) -> tuple[tuple[str, ...], int]:
    """Return captions and class (-1: none) of a sample."""
    content = _content(stream, texts[".json"], where) if ".json" in texts else {}
    number = content.get("class")
    captions = captions_in(content)
    if ".txt" in texts:
        captions = non_empty(_read(stream, texts[".txt"]).splitlines()) or captions
    if not captions:
        raise DataError(
            f"{where} has no caption: a .txt, or a .json with 'captions', 'caption' or 'text'"
        )
    return captions, number if type(number) is int and number >= 0 else -1


def _content(stream: IO[bytes], member: tarfile.TarInfo, where: str) -> dict[str, Any]:
    try:
        content = json.loads(_read(stream, member))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where} has unreadable JSON ({error}): make the tar again") from error
    return content if isinstance(content, dict) else {}


def _read(stream: IO[bytes], member: tarfile.TarInfo) -> str:
    stream.seek(member.offset_data)
    return stream.read(member.size).decode("utf-8", errors="replace")


def _suffix(member: tarfile.TarInfo) -> str:
    return "." + member.name.rpartition(".")[2].lower()
