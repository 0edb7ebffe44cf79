"""Reading stored samples: two positioned reads each, whatever the sample's place.

``os.pread`` has no file position, so descriptors may be shared by forked workers; a copy that
was pickled to another process opens its own. The number of open descriptors is bounded, since
a data set may have more shards than a process may open files.
"""

from __future__ import annotations

import json
import os
from bisect import bisect_right
from collections import OrderedDict
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from t2i_hpc.common.errors import DataError
from t2i_hpc.data.manifest import IMAGE_FORMATS, Index, Manifest

_OPEN_FILES = 64


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
    """Random access to the samples of a split; not for several threads at a time."""

    def __init__(self, manifest: Manifest) -> None:
        self._manifest = manifest
        self._ends = list(accumulate(manifest.counts))
        self._index: Index | None = None
        self._files: OrderedDict[str, int] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_index": None, "_files": OrderedDict()}

    def __del__(self) -> None:
        for descriptor in self.__dict__.get("_files", {}).values():
            os.close(descriptor)

    def read(self, number: int) -> StoredSample:
        """Return the sample at row `number` of the index, 0 ≤ number < sample count.

        Raises:
            DataError: the shard cannot be read or does not hold what the index says.
        """
        if self._index is None:
            self._index = self._manifest.open_index()
        row = self._index[number]
        shard = self._manifest.shards[bisect_right(self._ends, number)].name
        text = self._bytes(shard, int(row["json_offset"]), int(row["json_bytes"]))
        image = self._bytes(shard, int(row["image_offset"]), int(row["image_bytes"]))
        try:
            return _parse(text, image, IMAGE_FORMATS[row["image_format"]])
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise DataError(
                f"sample {number} of {self._manifest.folder / shard} is damaged "
                f"({type(error).__name__}: {error}); copy the split again or build it again"
            ) from error

    def name_of(self, number: int) -> str:
        """Return where a sample lies, for messages."""
        shard = self._manifest.shards[bisect_right(self._ends, number)].name
        return f"sample {number} in {self._manifest.folder / shard}"

    def _bytes(self, shard: str, offset: int, count: int) -> bytes:
        content = os.pread(self._descriptor(shard), count, offset)
        if len(content) != count:
            raise DataError(
                f"{self._manifest.folder / shard} ends within a sample: it was cut while it was "
                "in use; copy the split again or build it again"
            )
        return content

    def _descriptor(self, shard: str) -> int:
        if shard not in self._files:
            while len(self._files) >= _OPEN_FILES:
                os.close(self._files.popitem(last=False)[1])
            try:
                self._files[shard] = os.open(self._manifest.folder / shard, os.O_RDONLY)
            except OSError as error:
                raise DataError(
                    f"cannot open the shard {self._manifest.folder / shard}: {error.strerror}"
                ) from error
        self._files.move_to_end(shard)
        return self._files[shard]


def _parse(text: bytes, image: bytes, image_format: str) -> StoredSample:
    description = json.loads(text)
    captions = description["captions"]
    if not isinstance(captions, list) or not all(isinstance(text, str) for text in captions):
        raise TypeError("its captions are no list of texts")
    if not captions:
        raise ValueError("it has no caption")
    return StoredSample(
        key=str(description["key"]),
        image=image,
        image_format=image_format,
        captions=tuple(captions),
        class_id=int(description["class"]),
    )
