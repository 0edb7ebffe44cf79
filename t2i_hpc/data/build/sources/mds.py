"""MDS directories, as mosaicml-streaming writes them: shards of samples with typed columns.

``index.json`` names the shards and their columns. A shard begins with the number of its samples and
the byte at which each begins and ends (little-endian uint32); a sample is the sizes of its columns
of no fixed size, then the columns. Images are read where they lie, so a shard must not be
compressed. Columns of pickles are never read.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from t2i_hpc.common.errors import DataError
from t2i_hpc.config.data import ShardsConfig
from t2i_hpc.data.build.sources.sample import (
    Packed,
    SourceData,
    SourceSample,
    Unfit,
    folder_at,
    numbered,
)
from t2i_hpc.data.sidecars import (
    LARGEST_CLASS,
    NAMES,
    NO_CAPTION,
    NO_CLASS,
    captions_in,
    source_in,
)

_IMAGES = ("jpeg", "png")
_Read = Callable[[bytes], Any]
_NUMBERS = {  # NumPy's names, little-endian
    "int": "<i8",
    **{f"int{bits}": f"<i{bits // 8}" for bits in (8, 16, 32, 64)},
    **{f"uint{bits}": f"<u{bits // 8}" for bits in (8, 16, 32, 64)},
    **{f"float{bits}": f"<f{bits // 8}" for bits in (16, 32, 64)},
}
_TEXTS: dict[str, _Read] = {
    "str": lambda content: content.decode(errors="replace"),
    "str_int": int,
    "str_float": float,
    "json": json.loads,
}


def read_mds(config: ShardsConfig) -> SourceData:
    """Read the samples of an MDS directory, shard by shard.

    The key of a sample is ``<shard>/<its number there>``.

    Raises:
        DataError: no such directory, compressed or damaged shards, or not one image column.
    """
    folder = folder_at(config.images, "images", "an MDS directory, which holds index.json")
    if config.captions:
        raise DataError("captions= does not belong to source=mds: captions are in its columns")
    path = folder / "index.json"
    try:
        shards = json.loads(path.read_text(encoding="utf-8"))["shards"]
        samples = [
            sample for shard in shards for sample in _samples(folder, shard, config.caption_key)
        ]
    except DataError:
        raise
    except (OSError, ValueError, KeyError, TypeError, struct.error, RecursionError) as error:
        raise DataError(
            f"{folder} is not readable as MDS ({type(error).__name__}: {error}): name the folder "
            "that holds index.json, or fetch it again"
        ) from error
    if not samples:
        raise DataError(f"{path} names no samples: name another folder")
    return SourceData(numbered(samples))


def _samples(folder: Path, shard: Mapping[str, Any], key: str) -> Iterator[SourceSample]:
    if shard["format"] != "mds" or shard["version"] != 2:
        raise DataError(f"{folder} has shards of the format {shard['format']}, which is not read")
    name = str(shard["raw_data"]["basename"])
    path, columns = folder / name, _Columns(shard, folder)
    if "/" in name or not path.is_file():
        advice = "decompress" if shard.get("zip_data") else "fetch"
        raise DataError(f"{path} is not there: {advice} the shards first")
    with path.open("rb") as stream:
        (count,) = struct.unpack("<I", stream.read(4))
        if count != shard["samples"] or path.stat().st_size != shard["raw_data"]["bytes"]:
            raise DataError(f"{path} is not the shard that index.json names: fetch it again")
        ends = struct.unpack(f"<{count + 1}I", stream.read(4 * (count + 1)))
        for number, (begin, end) in enumerate(pairwise(ends)):
            stream.seek(begin)
            content = stream.read(end - begin)
            yield columns.sample(f"{path.stem}/{number:06d}", path, content, begin, key)


class _Columns:
    """Names, kinds and sizes of the columns of a shard."""

    def __init__(self, shard: Mapping[str, Any], folder: Path) -> None:
        self._names: list[str] = shard["column_names"]
        self._kinds = [kind.partition(":")[0] for kind in shard["column_encodings"]]
        self._sizes: list[int | None] = shard["column_sizes"]
        found = [kind in _IMAGES for kind in self._kinds]
        if not any(found):  # files that were stored as they are
            found = [kind == "bytes" for kind in self._kinds]
        if sum(found) != 1:
            given = dict(zip(self._names, self._kinds, strict=True))
            raise DataError(
                f"{folder} has the columns {given}: exactly one must be an image (jpeg, png, or "
                "the only one of bytes)"
            )
        self._image = found.index(True)

    def sample(
        self, key: str, path: Path, content: bytes, begin: int, caption: str
    ) -> SourceSample:
        """Return the sample whose bytes begin at `begin` in its shard."""
        place, packed, values = self._begin_of_columns(), None, dict[str, Any]()
        sizes = struct.iter_unpack("<I", content[:place])
        for number, (name, kind) in enumerate(zip(self._names, self._kinds, strict=True)):
            size = self._sizes[number] or next(sizes)[0]
            if number == self._image:
                packed = Packed(begin + place, size)
            elif kind in _TEXTS:
                values[name] = _TEXTS[kind](content[place : place + size])
            elif kind in _NUMBERS:
                values[name] = np.frombuffer(content, _NUMBERS[kind], 1, place)[0].item()
            place += size
        if place != len(content):
            raise DataError(f"{path} is damaged: {key} has other columns than index.json names")
        texts = captions_in(values, caption)
        unfit = None if texts else Unfit(NO_CAPTION, f"{key} of {path} has no column {NAMES}")
        given = values.get("class")
        has_class = type(given) is int and 0 <= given < LARGEST_CLASS
        return SourceSample(
            key,
            path,
            texts,
            given if has_class and given is not None else NO_CLASS,
            packed=packed,
            unfit=unfit,
            source=source_in(values, (caption.lower(),)) or None,
        )

    def _begin_of_columns(self) -> int:
        return 4 * sum(not size for size in self._sizes)
