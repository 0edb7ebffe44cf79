"""Reading stored samples: one positioned read each, whatever the sample's place.

Every sample is compared with its checksum, so what changed after the manifest was written (a
rebuilt shard, a flipped bit, a half-copied file) ends the run with the shard's name instead of
training on it.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from t2i_hpc.common.errors import DataError
from t2i_hpc.data.format.index import Index
from t2i_hpc.data.format.manifest import IMAGE_FORMATS, Manifest
from t2i_hpc.data.format.tars import checksum
from t2i_hpc.data.storage import LocalStorage, Storage, shards_kept

_GAP = 4096  # bytes between a sample's two files that are read along rather than read twice
_Row = tuple[int, int, int, int, int, int]


@dataclass(frozen=True)
class StoredSample:
    """A sample as it lies in its shard.

    Attributes:
        key: the image's name in its data set.
        image: the image file's bytes.
        image_format: jpeg, png or webp.
        captions: one or more texts.
        class_id: class of the image; a running number where there are no classes.
    """

    key: str
    image: bytes
    image_format: str
    captions: tuple[str, ...]
    class_id: int


class Reader:
    """Random access to the samples of a split; not for several threads at a time.

    Args:
        manifest: of the split.
        storage: where its bytes come from; None: the manifest's folder.
        window: shards that are read in turn; rows of twice as many are kept.
    """

    def __init__(self, manifest: Manifest, storage: Storage | None = None, window: int = 1) -> None:
        self._manifest, self._most = manifest, shards_kept(window)
        self._storage = storage or LocalStorage(manifest)
        self._rows: OrderedDict[int, Index] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_rows": OrderedDict()}

    def read(self, number: int) -> StoredSample:
        """Return the sample at row `number` of the index, 0 ≤ number < sample count.

        Raises:
            DataError: the shard cannot be read or does not hold what the index says.
        """
        shard = self._manifest.shard_of(number)
        row: _Row = self._rows_of(shard)[number - int(self._manifest.first[shard])].item()
        image, text = self._files(shard, row)
        if checksum(image, text) != row[2]:
            self._storage.forget(shard)  # a copy may have been cut short: look once more
            image, text = self._files(shard, row)
        if checksum(image, text) != row[2]:
            raise DataError(
                f"{self.name_of(number)} has changed since the manifest was written: copy that "
                "shard again or build the split again"
            )
        try:
            return _parse(text, image, IMAGE_FORMATS[row[5]])
        except (LookupError, TypeError, ValueError, OverflowError, RecursionError) as error:
            raise DataError(
                f"{self.name_of(number)} has an unreadable description "
                f"({type(error).__name__}: {error}): build the split again"
            ) from error

    def patience_for_a_batch(self) -> AbstractContextManager[None]:
        """Let the reads of a block share the time for which failing reads are tried again."""
        return self._storage.patience.for_a_batch()

    def name_of(self, number: int) -> str:
        """Return where a sample lies, for messages."""
        place = self._storage.name_of(self._manifest.shard_of(number))
        return f"sample {number} in {place}"

    def _rows_of(self, shard: int) -> Index:
        if shard not in self._rows:
            if len(self._rows) >= self._most:
                self._rows.popitem(last=False)
            self._rows[shard] = self._manifest.rows(shard)
        self._rows.move_to_end(shard)
        return self._rows[shard]

    def _files(self, shard: int, row: _Row) -> tuple[bytes, bytes]:
        """Return image file and description, in one read where they lie side by side."""
        image, text, _, image_bytes, text_bytes, _ = row
        begin, end = min(image, text), max(image + image_bytes, text + text_bytes)
        if end - begin > image_bytes + text_bytes + _GAP:
            read = self._storage.read
            return read(shard, image, image_bytes), read(shard, text, text_bytes)
        both, image, text = (
            self._storage.read(shard, begin, end - begin),
            image - begin,
            text - begin,
        )
        return both[image : image + image_bytes], both[text : text + text_bytes]


def _parse(text: bytes, image: bytes, image_format: str) -> StoredSample:
    description = json.loads(text.decode())
    captions = description["captions"]
    if not isinstance(captions, list) or not all(isinstance(text, str) for text in captions):
        raise TypeError("its captions are no list of texts")
    if not captions:
        raise ValueError("it has no caption")
    class_id = int(description["class"])
    if not -(1 << 63) <= class_id < 1 << 63:
        raise ValueError("its class has more than 64 bits")
    return StoredSample(
        key=str(description["key"]),
        image=image,
        image_format=image_format,
        captions=tuple(captions),
        class_id=class_id,
    )
