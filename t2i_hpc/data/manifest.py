"""The folder format of a split: tars, a manifest that vouches for them, an index into them.

    OUTPUT/vocabulary.json
    OUTPUT/<split>/000000.tar …   members <key>.jpg|png|webp and <key>.json, one pair a sample
    OUTPUT/<split>/index.npy      one row a sample: where its two members lie in their tar
    OUTPUT/<split>/manifest.json  what the split is; its SHA-256 is the identity of the data

The tars are plain WebDataset shards that any tool reads. The index makes them random-access:
a sample costs two reads, whatever its place, and no tar is ever walked while training. The
index is memory-mapped, so its size does not count.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from t2i_hpc.common.errors import DataError
from t2i_hpc.common.files import sha256_of_file, write_json
from t2i_hpc.data.images import SUFFIXES

FORMAT = 1
MANIFEST = "manifest.json"
INDEX = "index.npy"
VOCABULARY = "vocabulary.json"
IMAGE_FORMATS = tuple(SUFFIXES)
ROW = np.dtype(
    [
        ("image_offset", "<u8"),
        ("json_offset", "<u8"),
        ("image_bytes", "<u4"),
        ("json_bytes", "<u4"),
        ("image_format", "u1"),
    ]
)
Index = npt.NDArray[np.void]
_Kind = TypeVar("_Kind", int, str)
_REBUILD = "copy the split again or build it with t2i_hpc.shards"
_SHARD_NAME = re.compile(r"[\w-]+\.tar")


@dataclass(frozen=True)
class Shard:
    """One tar: file name, number of samples, bytes, SHA-256."""

    name: str
    count: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """What a split is made of.

    Attributes:
        folder: where the split lies (not part of its identity).
        name: name of the data set.
        split: name of the split.
        size: shorter side in pixels to which larger images were scaled down.
        smallest: shortest side in pixels among the stored images.
        image_format: jpeg, png or webp.
        shards: the tars in the order of the index.
        index_sha256: SHA-256 of index.npy.
    """

    folder: Path
    name: str
    split: str
    size: int
    smallest: int
    image_format: str
    shards: tuple[Shard, ...]
    index_sha256: str

    @classmethod
    def load(cls, folder: Path) -> Manifest:
        """Read and check a split's manifest, and that its index and tars are all there.

        Raises:
            DataError: something is missing, damaged or of another size than recorded.
        """
        path = folder / MANIFEST
        if not path.is_file():
            raise DataError(f"{folder} is no split: it has no {MANIFEST}; {_REBUILD}")
        try:
            manifest = cls._parse(folder, json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, KeyError, TypeError) as error:
            reason = f"{type(error).__name__}: {error}"
            raise DataError(f"{path} is damaged ({reason}); {_REBUILD}") from error
        manifest._check_files()
        return manifest

    @classmethod
    def _parse(cls, folder: Path, content: dict[str, Any]) -> Manifest:
        if content["format"] != FORMAT:
            raise ValueError(f"format {content['format']!r} instead of {FORMAT}")
        shards = tuple(_parse_shard(entry) for entry in content["shards"])
        if not shards or content["sample_count"] != sum(shard.count for shard in shards):
            raise ValueError("its number of samples is not the sum over its shards")
        return cls(
            folder=folder,
            name=_typed(content["name"], str),
            split=_typed(content["split"], str),
            size=_typed(content["size"], int),
            smallest=_typed(content["smallest"], int),
            image_format=_typed(content["image_format"], str),
            shards=shards,
            index_sha256=_typed(content["index_sha256"], str),
        )

    def save(self) -> None:
        """Write the manifest into its folder, atomically."""
        content = asdict(self)
        del content["folder"]
        content |= {"format": FORMAT, "sample_count": self.sample_count}
        write_json(self.folder / MANIFEST, content)

    @property
    def counts(self) -> list[int]:
        """Number of samples of each shard."""
        return [shard.count for shard in self.shards]

    @property
    def sample_count(self) -> int:
        """Number of samples of the split."""
        return sum(self.counts)

    @property
    def bytes(self) -> int:
        """Bytes of all tars."""
        return sum(shard.bytes for shard in self.shards)

    @cached_property
    def digest(self) -> str:
        """The identity of the data: SHA-256 of manifest.json, which holds those of the tars."""
        return hashlib.sha256((self.folder / MANIFEST).read_bytes()).hexdigest()

    def open_index(self) -> Index:
        """Return the memory-mapped index, one :data:`ROW` a sample in the order of the shards."""
        path = self.folder / INDEX
        try:
            index: Index = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError) as error:
            raise DataError(f"{path} cannot be read ({error}); {_REBUILD}") from error
        if index.dtype != ROW or index.shape != (self.sample_count,):
            raise DataError(
                f"{path} has {index.shape} rows of {index.dtype} instead of "
                f"{self.sample_count:,} samples; {_REBUILD}"
            )
        return index

    def _check_files(self) -> None:
        for shard in self.shards:
            path = self.folder / shard.name
            found = path.stat().st_size if path.is_file() else None
            if found is None:
                raise DataError(f"the shard {path} is missing; {_REBUILD}")
            if found != shard.bytes:
                raise DataError(
                    f"the shard {path} has {found:,} bytes instead of {shard.bytes:,}: it was "
                    f"cut or changed; {_REBUILD}"
                )
        self.open_index()
        if sha256_of_file(self.folder / INDEX) != self.index_sha256:
            raise DataError(
                f"{self.folder / INDEX} is not the index of this manifest (its SHA-256 differs); "
                f"{_REBUILD}"
            )


def verify(manifest: Manifest) -> None:
    """Compare every tar's SHA-256 with the manifest's: reads all data.

    Raises:
        DataError: a tar's content has changed.
    """
    for shard in manifest.shards:
        path = manifest.folder / shard.name
        if sha256_of_file(path) != shard.sha256:
            raise DataError(f"the content of {path} has changed (SHA-256 differs); {_REBUILD}")


def save_index(path: Path, parts: Sequence[Index]) -> None:
    """Write the index of several tars, in their order."""
    np.save(path, np.concatenate(parts), allow_pickle=False)


def _parse_shard(entry: dict[str, Any]) -> Shard:
    shard = Shard(
        _typed(entry["name"], str),
        _typed(entry["count"], int),
        _typed(entry["bytes"], int),
        _typed(entry["sha256"], str),
    )
    if not _SHARD_NAME.fullmatch(shard.name) or shard.count < 1:
        raise ValueError(f"the shard {shard.name!r} with {shard.count} samples")
    return shard


def _typed(value: object, kind: type[_Kind]) -> _Kind:
    if not isinstance(value, kind) or isinstance(value, bool):
        raise TypeError(f"{value!r} is no {kind.__name__}")
    return value
