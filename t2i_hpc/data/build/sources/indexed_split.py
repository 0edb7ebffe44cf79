"""A split that is there, or an index of tars where they lie, as the source of other shards.

Its samples are read one by one when they are wanted, by their number: nothing is listed, so a
partition of 10⁹ samples takes the memory of one of 10⁵, and what a shard's bytes follow from is
known from the source's manifest alone.
"""

from __future__ import annotations

from pathlib import Path

from t2i_hpc.common.errors import DataError
from t2i_hpc.config.data import DataConfig, ShardsConfig
from t2i_hpc.data.build.sources.sample import (
    AddressedSamples,
    SourceData,
    SourceSample,
    StoredSource,
    class_of,
    folder_at,
)
from t2i_hpc.data.captions import Vocabulary
from t2i_hpc.data.format.manifest import MANIFEST, VOCABULARY, Manifest
from t2i_hpc.data.split import open_storage
from t2i_hpc.data.tar_reader import Reader


class SplitSamples(AddressedSamples):
    """The samples of a split.

    Args:
        manifest: of the split.
        reader: of its samples.
    """

    def __init__(self, manifest: Manifest, reader: Reader) -> None:
        super().__init__(manifest.sample_count)
        self._reader, self.digest = reader, manifest.digest
        path = manifest.folder.parent / VOCABULARY
        self.vocabulary = Vocabulary.load(path)
        manifest.check_vocabulary(self.vocabulary.sha256, str(path))

    def sample(self, number: int) -> SourceSample:
        """Read a sample."""
        stored = self._reader.read(number)
        return StoredSource(
            key=stored.key,
            path=Path(self._reader.name_of(number).partition(" in ")[2]),
            captions=stored.captions,
            class_id=class_of(stored.class_id, number),
            orientation=stored.orientation,
            source=stored.source,
            content=stored.image,
        )


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
    # Other partitions' tars are theirs to look at; a tar is compared when it is opened anyway.
    manifest = Manifest.load(folder, check_tars=not config.partition)
    ranged = DataConfig(remote_reads="ranges")
    reader = Reader(manifest, open_storage(manifest, ranged))
    return SourceData(SplitSamples(manifest, reader))
