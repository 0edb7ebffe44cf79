"""The folder format of a split: tars, tables that locate samples, a manifest on top.

    OUTPUT/vocabulary.json
    OUTPUT/<split>/000000.tar …   members <key>.jpg|png|webp and <key>.json, one pair a sample
    OUTPUT/<split>/index.npy      one row a sample: offsets of its two members, their checksum
    OUTPUT/<split>/shards.npy     one row a tar: its samples, bytes, hash, the hash of its rows
    OUTPUT/<split>/outline.bin    of more than 4,096 tars: what a reader far away needs of them all
    OUTPUT/<split>/manifest.json  what the split is; its SHA-256 is the identity of the data

The tars are plain WebDataset shards that any tool reads. The index makes them random-access:
a sample costs one read, whatever its place, and no tar is ever walked while training.

Each file vouches for the next: the manifest holds the hash of the table of shards, a shard's
row the hash of its tar and of its rows in the index, a sample's row the checksum of its bytes.
So a split of any size opens at once, for both tables are memory-mapped and only the table of
shards is hashed then; rows are compared when their shard is first used, bytes when they are
read. Nothing that changed after the manifest was written goes unnoticed into a training. The
numbers of the tables are little-endian whatever the machine, so the same split has the same bytes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from t2i_hpc.common.errors import DataError
from t2i_hpc.common.files import sha256_of_file, write_json
from t2i_hpc.data.format.outline import MOST, Outline
from t2i_hpc.data.format.sums import CHECKSUMS, SHA256
from t2i_hpc.data.format.tables import (
    INDEX,
    REBUILD,
    ROW,
    SHARD_ROW,
    SHARDS,
    Index,
    Numbers,
    Shard,
    map_table,
    sha256_of_rows,
    shard_name,
)
from t2i_hpc.data.format.tar_list import TarList
from t2i_hpc.data.images import SUFFIXES

FORMAT = 3
IN_PLACE = 4  # an index of tars that lie elsewhere
# 2 names no vocabulary, and its shards are in the order that running trainings know.
_READ = (2, FORMAT, IN_PLACE)
TARS = "tars.jsonl"  # in place: where each tar is, {"tar": path or address, …}
DESCRIPTIONS = "descriptions.bin"  # in place: what shards have as <key>.json
MANIFEST = "manifest.json"
VOCABULARY = "vocabulary.json"
IMAGE_FORMATS = tuple(SUFFIXES)
ORIGINAL = "original"
_Kind = TypeVar("_Kind", int, str)
_CHECKED = 4096  # shards whose size is compared on opening; all others when they are first used


@dataclass(frozen=True)
class Storing:
    """How images became those of the shards; nothing of it is known of older splits.

    Attributes:
        encoding: original (byte for byte), jpeg, png or webp; "" where it is not recorded.
        quality: of jpeg and webp, else 0.
        resampling: filter by which larger images were scaled down to the split's size, or none.
    """

    encoding: str = ""
    quality: int = 0
    resampling: str = ""


@dataclass(frozen=True)
class Manifest:
    """What a split is made of.

    Attributes:
        folder: where manifest and tables are (not part of the split's identity).
        name: name of the data set.
        split: name of the split.
        size: shorter side in pixels to which larger images were scaled down.
        smallest: shortest side in pixels among the stored images.
        image_format: jpeg, png or webp; the most frequent one.
        sample_count: number of samples.
        shard_count: number of tars.
        bytes: bytes of all tars.
        shards_sha256: SHA-256 of shards.npy.
        vocabulary: SHA-256 of the vocabulary that the split was built with; empty in format 2.
        format: of manifest and order, 2 or 3; 4 of an index of tars where they lie.
        location: folder or URL of the tars; empty: `folder`, or what the index says.
        storing: how the images were stored.
        outline: SHA-256 of the outline's content; empty: there is none.
        checksum: which hash of each tar is kept as its SHA-256, see
            :mod:`t2i_hpc.data.format.sums`.
    """

    folder: Path
    name: str
    split: str
    size: int
    smallest: int
    image_format: str
    sample_count: int
    shard_count: int
    bytes: int
    shards_sha256: str
    vocabulary: str = ""
    format: int = FORMAT
    location: str = ""
    storing: Storing = field(default_factory=Storing)
    outline: str = ""
    checksum: str = SHA256

    @classmethod
    def load(cls, folder: Path, location: str = "", check_tars: bool = True) -> Manifest:
        """Read and check a split's manifest, and that its tables and tars are all there.

        Args:
            folder: that of the manifest and the tables.
            location: where the tars are, if not in `folder`; they are then not checked.
            check_tars: check that tars are there and of the right size, with one call each;
                each is compared again when it is opened.

        Raises:
            DataError: something is missing, damaged or of another size than recorded.
        """
        path = folder / MANIFEST
        if not path.is_file():
            raise DataError(f"{folder} is no split: it has no {MANIFEST}; {REBUILD}")
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            manifest = cls._parse(folder, content, location)
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            reason = f"{type(error).__name__}: {error}"
            raise DataError(f"{path} is damaged ({reason}); {REBUILD}") from error
        manifest._check_tables()
        if check_tars and not location:
            manifest._check_sizes()
        return manifest

    @classmethod
    def _parse(cls, folder: Path, content: dict[str, Any], location: str) -> Manifest:
        if content["format"] not in _READ:
            raise ValueError(f"format {content['format']!r} instead of {FORMAT}")
        numbers = ("size", "smallest", "sample_count", "shard_count", "bytes", "format")
        texts = ["name", "split", "image_format", "shards_sha256"]
        texts += ["vocabulary"] if content["format"] > _READ[0] else []
        if min(_typed(content[key], int) for key in numbers) < 1:
            raise ValueError("a number below 1")
        values: dict[str, Any] = {key: content[key] for key in numbers}
        values |= {key: _typed(content[key], str) for key in texts}
        known = content.get("storing", {})
        values["storing"] = Storing(
            _typed(known.get("encoding", ""), str),
            _typed(known.get("quality", 0), int),
            _typed(known.get("resampling", ""), str),
        )
        values["outline"] = _typed(content.get("outline", ""), str)
        values["checksum"] = _typed(content.get("checksum", SHA256), str)
        if values["checksum"] not in CHECKSUMS:
            raise ValueError(f"a checksum {values['checksum']!r}")
        return cls(folder=folder, location=location, **values)

    def save(self) -> None:
        """Write the manifest into its folder, atomically; of many shards an outline as well."""
        content = asdict(self)
        del content["folder"], content["location"], content["outline"]
        if self.shard_count > MOST:
            content["outline"] = Outline.of(self.table).save(self.folder)
        if self.format == _READ[0]:
            del content["vocabulary"]
        if not self.storing.encoding:
            del content["storing"]
        if self.checksum == SHA256:
            del content["checksum"]
        write_json(self.folder / MANIFEST, content)

    @property
    def order(self) -> int:
        """Which order of shards the split has, for :class:`t2i_hpc.data.sampler.Sampler`."""
        return min(self.format, FORMAT) - 1

    @property
    def in_place(self) -> bool:
        """Whether the tars are others', and only their index is in the folder."""
        return self.format == IN_PLACE

    @cached_property
    def tars(self) -> Sequence[str]:
        """In place: path or address of each tar; no part of the identity, so tars may move.

        Raises:
            DataError: the list is missing or damaged.
        """
        return TarList(self.folder / TARS, self.shard_count, REBUILD)

    @property
    def server(self) -> str:
        """The address of the tars, or of the first of them; empty: they are in folders here."""
        if self.in_place:
            first = self.tars[0]
            return first if "://" in first else ""
        return self.location if "://" in self.location else ""

    def tar(self, number: int) -> str:
        """Return the path of a shard that is in a folder here."""
        if self.in_place:
            return self.tars[number]
        return str(Path(self.location or self.folder) / shard_name(number))

    @cached_property
    def descriptions(self) -> npt.NDArray[np.uint8]:
        """In place: the memory-mapped descriptions, uint8 (bytes,).

        Raises:
            DataError: they are missing.
        """
        path = self.folder / DESCRIPTIONS
        try:
            return np.memmap(path, np.uint8, "r")
        except (OSError, ValueError) as error:
            raise DataError(f"{path} cannot be read ({error}); {REBUILD}") from error

    @property
    def bytes_of_index(self) -> int:
        """Bytes in the folder of an index in place."""
        return sum(path.stat().st_size for path in self.folder.iterdir())

    def check_vocabulary(self, found: str, place: str) -> None:
        """Refuse another vocabulary than the split was built with.

        Args:
            found: SHA-256 of the vocabulary beside the split.
            place: where that is.

        Raises:
            DataError: it is another one.
        """
        if self.vocabulary and found != self.vocabulary:
            raise DataError(
                f"{place} is not the vocabulary that the split {self.split} was built with (its "
                "SHA-256 differs), so tokens would mean other words: restore that vocabulary, or "
                "build the split again"
            )

    @property
    def stored(self) -> str:
        """How the images are stored, in words."""
        how, scaled = self.storing, f"shorter side at most {self.size} px"
        if self.in_place:
            return "originals in the tars of others, turned and converted as they are read"
        if not how.encoding:
            return f"{self.image_format}, {scaled}; filter and quality unknown"
        if how.encoding == ORIGINAL:
            return "originals; those that were turned or cut are PNG"
        quality = f"quality {how.quality}" if how.quality else "lossless"
        return f"{how.encoding}, {quality}, {scaled} by {how.resampling}"

    @cached_property
    def digest(self) -> str:
        """The identity of the data: SHA-256 of manifest.json, which vouches for all the rest."""
        return hashlib.sha256((self.folder / MANIFEST).read_bytes()).hexdigest()

    @cached_property
    def table(self) -> Index:
        """The memory-mapped table of shards, :data:`SHARD_ROW`."""
        return map_table(self.folder / SHARDS, SHARD_ROW, self.shard_count)

    @cached_property
    def index(self) -> Index:
        """The memory-mapped index, one :data:`ROW` a sample in the order of the shards."""
        return map_table(self.folder / INDEX, ROW, self.sample_count)

    @cached_property
    def counts(self) -> Numbers:
        """Number of samples of each shard, int64 (shards,)."""
        return np.asarray(self.table["count"], dtype=np.int64)

    @cached_property
    def first(self) -> Numbers:
        """Samples before each shard, int64 (shards,)."""
        return np.asarray(np.cumsum(self.counts) - self.counts)

    def __getstate__(self) -> dict[str, Any]:
        """Leave the tables out: another process maps them itself."""
        views = ("table", "index", "counts", "first", "descriptions")
        return {name: value for name, value in self.__dict__.items() if name not in views}

    def shard(self, number: int) -> Shard:
        """Return the row of a shard."""
        return Shard.of_row(number, self.table[number])

    def shards(self) -> Iterator[Shard]:
        """Give the shards in order."""
        return (self.shard(number) for number in range(self.shard_count))

    def shard_of(self, sample: int) -> int:
        """Return the number of the shard that holds sample `sample`."""
        return int(np.searchsorted(self.first, sample, side="right")) - 1

    def rows(self, number: int) -> Index:
        """Return a shard's rows of the index, after comparing them with their hash.

        Raises:
            DataError: the index is not that of this manifest, or points out of the tar.
        """
        rows = self._stored_rows(number)
        if sha256_of_rows(rows) != self.shard(number).rows_sha256:
            raise DataError(
                f"{self.folder / INDEX} is not the index of this manifest (its rows of "
                f"{shard_name(number)} differs in SHA-256); {REBUILD}"
            )
        for file in ("image", "json"):
            starts, counts = rows[f"{file}_offset"], rows[f"{file}_bytes"].astype(np.uint64)
            within = self.shard(number).bytes
            if self.in_place and file == "json":
                within = len(self.descriptions)
            size = np.uint64(within)
            if ((starts > size) | (counts > size - starts)).any():
                raise DataError(
                    f"{self.folder / INDEX} points out of {shard_name(number)}; {REBUILD}"
                )
        return rows

    @property
    def largest(self) -> int:
        """Bytes of the largest shard."""
        return int(self.table["bytes"].max())

    def _stored_rows(self, number: int) -> Index:
        first = int(self.first[number])
        return self.index[first : first + int(self.counts[number])]

    def _check_tables(self) -> None:
        self._check_shards()
        if len(self.index) != self.sample_count:
            raise DataError(f"{self.folder / INDEX} has not one row a sample; {REBUILD}")

    def _check_shards(self) -> None:
        path = self.folder / SHARDS
        if not path.is_file():
            raise DataError(f"{path} is missing; {REBUILD}")
        if sha256_of_file(path) != self.shards_sha256:
            raise DataError(
                f"{path} is not the table of this manifest (its SHA-256 differs); {REBUILD}"
            )
        counts, samples, size, whole = list[Numbers](), 0, 0, True
        for block in self._blocks_of_table():
            counts.append(block["count"].astype(np.int64))
            ends = samples + np.cumsum(counts[-1])
            whole &= bool(counts[-1].all() and (block["first"] == ends - counts[-1]).all())
            samples, size = int(ends[-1]), size + int(block["bytes"].sum())
        if not whole or (samples, size) != (self.sample_count, self.bytes):
            raise DataError(f"{path} contradicts {MANIFEST} in samples or bytes; {REBUILD}")
        self.__dict__["counts"] = np.concatenate(counts)  # as the cached property does

    def _blocks_of_table(self) -> Iterator[Index]:
        """Read the table of shards without mapping it into memory, where all of it would stay."""
        with (self.folder / SHARDS).open("rb") as stream:
            stream.seek(getattr(self.table, "offset"))  # noqa: B009 - of a memmap, untyped
            for begin in range(0, self.shard_count, _CHECKED):
                yield np.fromfile(stream, SHARD_ROW, min(_CHECKED, self.shard_count - begin))

    def _check_sizes(self) -> None:
        if self.server:  # a request each: they are compared when they are read
            return
        step = -(-self.shard_count // _CHECKED)
        for number in range(0, self.shard_count, step):
            path, size = Path(self.tar(number)), int(self.table[number]["bytes"])
            try:
                found = path.stat().st_size
            except OSError as error:
                advice = f"correct its path in {self.folder / TARS}" if self.in_place else REBUILD
                raise DataError(f"the shard {path} is missing; {advice}") from error
            if found != size:
                raise DataError(
                    f"the shard {path} has {found:,} bytes instead of {size:,}: it was cut or "
                    f"changed; {'index the tars again' if self.in_place else REBUILD}"
                )


def _typed(value: object, kind: type[_Kind]) -> _Kind:
    if not isinstance(value, kind) or isinstance(value, bool):
        raise TypeError(f"{value!r} is no {kind.__name__}")
    return value
