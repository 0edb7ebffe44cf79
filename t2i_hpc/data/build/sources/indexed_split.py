"""A split that is there, or an index of tars where they lie, as the source of other shards.

Its samples are read one by one when they are wanted, by their number: nothing is listed, so a
partition of 10⁹ samples takes the memory of one of 10⁵, and what a shard's bytes follow from is
known from the source's manifest alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import overload

from t2i_hpc.common.errors import DataError
from t2i_hpc.config.data import DataConfig, ShardsConfig
from t2i_hpc.data.build.sources.sample import SourceData, SourceSample, folder_at
from t2i_hpc.data.captions import Vocabulary
from t2i_hpc.data.format.manifest import MANIFEST, VOCABULARY, Manifest
from t2i_hpc.data.split import open_storage
from t2i_hpc.data.tar_reader import Reader


@dataclass(frozen=True, slots=True)
class StoredSource(SourceSample):
    """A sample whose image file is read already.

    Attributes:
        content: the file's bytes.
    """

    content: bytes = b""

    @property
    def size(self) -> int:
        """Bytes of the image file."""
        return len(self.content)

    def read(self) -> bytes:
        """Return the image file's bytes."""
        return self.content


class SplitSamples(Sequence[SourceSample]):
    """The samples of a split, or the first `count` of them.

    Args:
        manifest: of the split.
        reader: of its samples.
        count: how many there are.
    """

    def __init__(self, manifest: Manifest, reader: Reader, count: int) -> None:
        self._manifest, self._reader, self._count = manifest, reader, count
        path = manifest.folder.parent / VOCABULARY
        self.vocabulary = Vocabulary.load(path)
        manifest.check_vocabulary(self.vocabulary.sha256, str(path))

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, number: int) -> SourceSample: ...
    @overload
    def __getitem__(self, number: slice) -> Sequence[SourceSample]: ...
    def __getitem__(self, number: int | slice) -> SourceSample | Sequence[SourceSample]:
        if isinstance(number, slice):
            return [self[one] for one in range(*number.indices(self._count))]
        if not 0 <= number < self._count:
            raise IndexError(number)
        stored = self._reader.read(number)
        return StoredSource(
            key=stored.key,
            path=Path(self._reader.name_of(number).partition(" in ")[2]),
            captions=stored.captions,
            class_id=stored.class_id if stored.class_id >= 0 else number,
            orientation=stored.orientation,
            source=stored.source,
            content=stored.image,
        )

    def __iter__(self) -> Iterator[SourceSample]:
        return (self[number] for number in range(self._count))

    def first(self, count: int | None) -> SplitSamples:
        """Return the first samples alone; None: all."""
        return SplitSamples(self._manifest, self._reader, min(count or self._count, self._count))

    def identity(self, numbers: range) -> list[object]:
        """Return what some samples follow from."""
        return [self._manifest.digest, numbers.start, numbers.stop]


def read_split(config: ShardsConfig) -> SourceData:
    """Open a split as a source.

    Raises:
        DataError: there is none, or settings do not fit.
    """
    folder = folder_at(config.images, "images", "a split, e.g. shards/mine/train")
    if not (folder / MANIFEST).is_file():
        raise DataError(f"{folder} is no split: name one, e.g. {folder / 'train'}")
    if config.captions:
        raise DataError("captions= does not belong to source=split: a split has its captions")
    manifest = Manifest.load(folder)
    ranged = DataConfig(remote_reads="ranges")
    reader = Reader(manifest, open_storage(manifest, ranged))
    return SourceData(SplitSamples(manifest, reader, manifest.sample_count))
