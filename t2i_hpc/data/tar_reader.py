"""From a sample to the bytes of its image: shard, row, offset in the tar, one positioned read.

Every sample is compared with its checksum, so what changed after the manifest was written (a
rebuilt shard, a flipped bit, a half-copied file) ends the run with the shard's name instead of
training on it.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, NamedTuple

from t2i_hpc.common.errors import DataError
from t2i_hpc.data.format.manifest import IMAGE_FORMATS, Manifest
from t2i_hpc.data.format.tables import Index, checksum
from t2i_hpc.data.images import IMAGE_FORMATS_OF_SUFFIX, Pixels, notes_of, to_srgb, turn
from t2i_hpc.data.sidecars import Rules, described, image_of, texts_of
from t2i_hpc.data.storage.local_shards import OPEN_FILES, LocalStorage, Storage

_GAP = 4096  # bytes between a sample's two files that are read along rather than read twice


@dataclass(frozen=True)
class StoredSample:
    """A sample as it is stored.

    Attributes:
        key: the image's name in its data set.
        image: the image file's bytes.
        image_format: jpeg, png or webp.
        captions: one or more texts.
        class_id: class of the image; a running number where there are no classes.
        orientation: that of EXIF, of an image in a tar of others; 0: it stands upright.
        noted: whether its pixels have to be turned or converted after they are decoded.
        source: what else is said of the image: url, licence, sizes, scores.
    """

    key: str
    image: bytes
    image_format: str
    captions: tuple[str, ...]
    class_id: int
    orientation: int = 0
    noted: bool = False
    source: Mapping[str, Any] | None = None

    @classmethod
    def of_members(cls, members: Mapping[str, bytes], rules: Rules) -> StoredSample:
        """Return a sample of a tar of others, of its members by extension.

        Raises:
            UnfitSample: no image, more than one, or no caption.
        """
        image = image_of(members, rules)
        given = described({one: members[one] for one in texts_of(members, rules)}, rules, members)
        return cls(
            key=given.key,
            image=members[image],
            image_format=IMAGE_FORMATS_OF_SUFFIX.get(f".{image.rpartition('.')[2]}", "jpeg"),
            captions=given.captions,
            class_id=given.class_id,
            orientation=given.orientation,
            noted=True,
            source=given.source,
        )

    def upright(self, image: Pixels) -> Pixels:
        """Return the decoded image as viewers show it: turned, and in the colors of sRGB."""
        if not self.noted:
            return image
        notes = notes_of(self.image)
        return to_srgb(turn(image, notes.orientation or self.orientation), notes.profile)


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

    def read(self, sample: int) -> StoredSample:
        """Return sample 0 ≤ `sample` < sample count of the split.

        Raises:
            DataError: the shard cannot be read or does not hold what the index says.
        """
        shard = self._manifest.shard_of(sample)
        row = _Row(*self._rows_of(shard)[sample - int(self._manifest.first[shard])].item())
        image, text = self._files(shard, row)
        if checksum(image, text) != row.checksum:
            self._storage.forget(shard)  # a copy may have been cut short: read once more
            image, text = self._files(shard, row)
        if checksum(image, text) != row.checksum:
            raise DataError(
                f"{self.name_of(sample)} has changed since the manifest was written: copy that "
                f"shard again or {'index' if self._manifest.in_place else 'build'} the split again"
            )
        try:
            missing = -1 - sample if self._manifest.in_place else None
            return _parse(text, image, IMAGE_FORMATS[row.image_format], missing)
        except (LookupError, TypeError, ValueError, OverflowError, RecursionError) as error:
            raise DataError(
                f"{self.name_of(sample)} has an unreadable description "
                f"({type(error).__name__}: {error}): build the split again"
            ) from error

    def retries_shared(self) -> AbstractContextManager[None]:
        """Let the reads of a block share the time for which failing reads are tried again."""
        return self._storage.retry.shared()

    def name_of(self, sample: int) -> str:
        """Return where a sample is, for messages."""
        place = self._storage.name_of(self._manifest.shard_of(sample))
        return f"sample {sample} in {place}"

    def _rows_of(self, shard: int) -> Index:
        if shard not in self._rows:
            if len(self._rows) >= self._most:
                self._rows.popitem(last=False)
            self._rows[shard] = self._manifest.rows(shard)
        self._rows.move_to_end(shard)
        return self._rows[shard]

    def _files(self, shard: int, row: _Row) -> tuple[bytes, bytes]:
        """Return image file and description, in one read where they are side by side."""
        if self._manifest.in_place:
            text = self._manifest.descriptions[row.json_offset :][: row.json_bytes].tobytes()
            return self._storage.read(shard, row.image_offset, row.image_bytes), text
        begin = min(row.image_offset, row.json_offset)
        end = max(row.image_offset + row.image_bytes, row.json_offset + row.json_bytes)
        read = self._storage.read
        if end - begin > row.image_bytes + row.json_bytes + _GAP:
            image = read(shard, row.image_offset, row.image_bytes)
            return image, read(shard, row.json_offset, row.json_bytes)
        both = read(shard, begin, end - begin)
        first, second = row.image_offset - begin, row.json_offset - begin
        return both[first : first + row.image_bytes], both[second : second + row.json_bytes]


class _Row(NamedTuple):
    """A row of the index, :data:`t2i_hpc.data.format.manifest.ROW`."""

    image_offset: int
    json_offset: int
    checksum: int
    image_bytes: int
    json_bytes: int
    image_format: int


def _parse(text: bytes, image: bytes, image_format: str, no_class: int | None) -> StoredSample:
    """Return a sample; `no_class` is its class where none is given, which None refuses."""
    description = json.loads(text.decode())
    captions = description["captions"]
    if not isinstance(captions, list) or not all(isinstance(text, str) for text in captions):
        raise TypeError("its captions are no list of texts")
    if not captions:
        raise ValueError("it has no caption")
    class_id = int(description["class"] if no_class is None else description.get("class", no_class))
    if not -(1 << 63) <= class_id < 1 << 63:
        raise ValueError("its class has more than 64 bits")
    return StoredSample(
        key=str(description["key"]),
        image=image,
        image_format=image_format,
        captions=tuple(captions),
        class_id=class_id,
        orientation=int(description.get("orientation", 0)),
        noted=bool(description.get("noted")),
        source=description.get("source"),
    )


def shards_kept(window: int) -> int:
    """Return of how many shards rows and descriptors are kept: windows overlap at their ends."""
    return max(OPEN_FILES, 2 * window)
