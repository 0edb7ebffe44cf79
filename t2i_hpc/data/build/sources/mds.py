"""MDS directories, as mosaicml-streaming writes them: shards of samples with typed columns.

``index.json`` names the shards and their columns. A shard begins with the number of its samples and
the byte at which each begins and ends (little-endian uint32); a sample is the sizes of its columns
of no fixed size, then the columns. Images are read where they lie, so a shard must not be
compressed. Columns of pickles are never read. A partition opens the shards of its own
samples alone.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from t2i_hpc.common.errors import DataError
from t2i_hpc.common.files import sha256_of_json
from t2i_hpc.config.data import ShardsConfig
from t2i_hpc.data.build.sources.sample import (
    AddressedSamples,
    Packed,
    SourceData,
    SourceSample,
    Unfit,
    class_of,
    folder_at,
)
from t2i_hpc.data.sidecars import NAMES, NO_CAPTION, captions_in, source_in

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
    """Open an MDS directory: its index says how many samples each shard has.

    The key of a sample is ``<shard>/<its number there>``.

    Raises:
        DataError: no such directory, compressed or damaged shards, or not one image column.
    """
    folder = folder_at(config.images, "images", "an MDS directory, which holds index.json")
    if config.captions:
        raise DataError("captions= does not belong to source=mds: captions are in its columns")
    return SourceData(_opened(folder, config.caption_key))


def captions_of_mds(folder: Path) -> Iterator[str]:
    """Give the captions of an MDS directory."""
    samples = _opened(folder, "")
    yield from samples.texts(range(len(samples)))


def is_mds(folder: Path) -> bool:
    """Whether a folder is an MDS directory."""
    return (folder / "index.json").is_file() and next(folder.glob("*.mds"), None) is not None


def _opened(folder: Path, caption: str) -> MdsSamples:
    path = folder / "index.json"
    with _readable(folder):
        listed = json.loads(path.read_text(encoding="utf-8"))["shards"]
        shards = [_Shard.of(one, folder) for one in listed if one["samples"]]
    if not shards:
        raise DataError(f"{path} names no samples: name another folder")
    return MdsSamples(folder, shards, caption)


@contextmanager
def _readable(folder: Path) -> Iterator[None]:
    """Turn whatever a damaged directory raises into one sentence."""
    try:
        yield
    except DataError:
        raise
    except (OSError, ValueError, KeyError, TypeError, struct.error, RecursionError) as error:
        raise DataError(
            f"{folder} is not readable as MDS ({type(error).__name__}: {error}): name the folder "
            "that holds index.json, or fetch it again"
        ) from error


@dataclass(frozen=True)
class _Shard:
    """A shard by the index alone: its file, its samples, its columns."""

    path: Path
    count: int
    columns: _Columns
    state: tuple[int, int]  # bytes, time of the last change in nanoseconds

    @classmethod
    def of(cls, found: Mapping[str, Any], folder: Path) -> _Shard:
        if found["format"] != "mds" or found["version"] != 2:
            raise DataError(
                f"{folder} has shards of the format {found['format']}, which is not read"
            )
        name = str(found["raw_data"]["basename"])
        path = folder / name
        if "/" in name or not path.is_file():
            advice = "decompress" if found.get("zip_data") else "fetch"
            raise DataError(f"{path} is not there: {advice} the shards first")
        state = path.stat()
        if state.st_size != found["raw_data"]["bytes"]:
            raise _other_shard(path)
        times = state.st_size, state.st_mtime_ns
        return cls(path, int(found["samples"]), _Columns(found, folder), times)

    def places(self) -> npt.NDArray[np.uint32]:
        """Read where each sample begins, and where the last one ends, uint32 (samples + 1,)."""
        with self.path.open("rb") as stream:
            (count,) = struct.unpack("<I", stream.read(4))
            if count != self.count:
                raise _other_shard(self.path)
            return np.frombuffer(stream.read(4 * (count + 1)), "<u4", count + 1)


def _other_shard(path: Path) -> DataError:
    return DataError(f"{path} is not the shard that index.json names: fetch it again")


class MdsSamples(AddressedSamples):
    """The samples of an MDS directory; of a shard nothing is read before one of its samples is.

    Args:
        folder: the directory.
        shards: that hold samples, in order.
        caption: name of the captions; empty: one of the usual names.
    """

    def __init__(self, folder: Path, shards: Sequence[_Shard], caption: str) -> None:
        self._folder, self._shards, self._caption = folder, shards, caption
        self._ends = np.cumsum([shard.count for shard in shards], dtype=np.int64)
        super().__init__(int(self._ends[-1]))
        self.said = frozenset(name for shard in shards for name in shard.columns.names)
        states = [[one.path.name, one.count, *one.state] for one in shards]
        self.digest = sha256_of_json([caption, states])
        self._at: tuple[int, npt.NDArray[np.uint32]] | None = None

    def key(self, number: int) -> str:
        """Return a sample's key."""
        shard, place = self._place(number)
        return f"{self._shards[shard].path.stem}/{place:06d}"

    def sample(self, number: int) -> SourceSample:
        """Read the columns of a sample, its image excepted."""
        number_of_shard, place = self._place(number)
        shard = self._shards[number_of_shard]
        with _readable(self._folder):
            if self._at is None or self._at[0] != number_of_shard:
                self._at = number_of_shard, shard.places()
            begin, end = map(int, self._at[1][place : place + 2])
            with shard.path.open("rb") as stream:
                part = _Part(stream.fileno(), begin, end - begin)
                return shard.columns.sample(
                    self.key(number), shard.path, part, self._caption, number
                )

    def _place(self, number: int) -> tuple[int, int]:
        """Return the shard of a sample, and its number there."""
        shard = int(np.searchsorted(self._ends, number, side="right"))
        return shard, number - (int(self._ends[shard - 1]) if shard else 0)


class _Part(NamedTuple):
    """The bytes of a sample in an open shard."""

    descriptor: int
    begin: int
    length: int

    def read(self, place: int, count: int) -> bytes:
        """Return some of them."""
        return os.pread(self.descriptor, count, self.begin + place)


class _Columns:
    """Names, kinds and sizes of the columns of a shard."""

    def __init__(self, shard: Mapping[str, Any], folder: Path) -> None:
        self.names: list[str] = shard["column_names"]
        self._kinds = [kind.partition(":")[0] for kind in shard["column_encodings"]]
        self._sizes: list[int | None] = shard["column_sizes"]
        found = [kind in _IMAGES for kind in self._kinds]
        if not any(found):  # files that were stored as they are
            found = [kind == "bytes" for kind in self._kinds]
        if sum(found) != 1:
            given = dict(zip(self.names, self._kinds, strict=True))
            raise DataError(
                f"{folder} has the columns {given}: exactly one must be an image (jpeg, png, or "
                "the only one of bytes)"
            )
        self._image = found.index(True)

    def sample(self, key: str, path: Path, part: _Part, caption: str, number: int) -> SourceSample:
        """Read the sample of some bytes of its shard; `number` is that in the source."""
        place, packed, values = self._begin_of_columns(), None, dict[str, Any]()
        sizes = struct.iter_unpack("<I", part.read(0, place))
        for column, (name, kind) in enumerate(zip(self.names, self._kinds, strict=True)):
            size = self._sizes[column] or next(sizes)[0]
            if column == self._image:
                packed = Packed(part.begin + place, size)
            elif kind in _TEXTS:
                values[name] = _TEXTS[kind](part.read(place, size))
            elif kind in _NUMBERS:
                values[name] = np.frombuffer(part.read(place, size), _NUMBERS[kind], 1)[0].item()
            place += size
        if place != part.length:
            raise DataError(f"{path} is damaged: {key} has other columns than index.json names")
        texts = captions_in(values, caption)
        unfit = None if texts else Unfit(NO_CAPTION, f"{key} of {path} has no column {NAMES}")
        return SourceSample(
            key,
            path,
            texts,
            class_of(values.get("class"), number),
            packed=packed,
            unfit=unfit,
            source=source_in(values, (caption.lower(),)) or None,
        )

    def _begin_of_columns(self) -> int:
        return 4 * sum(not size for size in self._sizes)
