"""A split that is open for reading: its manifest, its vocabulary and its samples.

:class:`Reader` goes from a sample to the bytes of its image: shard, row, offset, one positioned
read. Every sample is compared with its checksum, so what changed after the manifest was written (a
rebuilt shard, a flipped bit, a half-copied file) ends the run with the shard's name instead of
training on it.
"""

from __future__ import annotations

import json
import logging
from collections import OrderedDict
from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from t2i_hpc.common.errors import ConfigurationError, DataError, nearest
from t2i_hpc.common.files import resource, size_text
from t2i_hpc.common.seeds import generator
from t2i_hpc.config.data import DataConfig
from t2i_hpc.data.captions import Vocabulary, WordPieces
from t2i_hpc.data.format.manifest import (
    IMAGE_FORMATS,
    MANIFEST,
    VOCABULARY,
    Index,
    Manifest,
    checksum,
)
from t2i_hpc.data.images import Pixels, center_crop, decode, resize_shorter
from t2i_hpc.data.storage.cache import Cache
from t2i_hpc.data.storage.local_shards import OPEN_FILES, LocalStorage, Storage
from t2i_hpc.data.storage.remote import (
    CachedStorage,
    RangedStorage,
    Server,
    fetch_manifest,
    fetch_vocabulary,
    is_remote,
    join,
)
from t2i_hpc.data.storage.retry import shown

if TYPE_CHECKING:
    import torch  # checks of shards have no use for it, and it takes seconds to import

DEMO = "demo"
_GAP = 4096  # bytes between a sample's two files that are read along rather than read twice


class Split:
    """Random access to a split's samples; may be pickled and used in forked workers."""

    def __init__(
        self,
        manifest: Manifest,
        vocabulary: Vocabulary,
        storage: Storage | None = None,
        window: int = 1,
    ) -> None:
        self.manifest = manifest
        self.vocabulary = vocabulary
        self._reader = Reader(manifest, storage, window)

    @classmethod
    def open(cls, config: DataConfig, split: str, check_tars: bool = True) -> Split:
        """Open ``config.path/<split>``, a folder here or on a server.

        The path ``demo`` is the data that ships with t2i_hpc.

        Args:
            config: where the data is and how it is read.
            split: name of the split.
            check_tars: check that its tars are there; one rank is enough for all.

        Raises:
            DataError: no such folder or split, or a part of it is missing or damaged.
        """
        if is_remote(config.path, "data.path"):
            server, cache = Server(config.retry_seconds), open_cache(config)
            manifest = fetch_manifest(join(config.path, split), server, cache)
        else:
            manifest = Manifest.load(_folder_of(config, split), check_tars=check_tars)
        vocabulary = open_vocabulary(config)
        if not config.tokenizer:
            place = str(manifest.folder.parent / VOCABULARY)
            if manifest.location:
                place = shown(join(config.path, VOCABULARY))
            manifest.check_vocabulary(vocabulary.sha256, place)
        return cls(manifest, vocabulary, open_storage(manifest, config), config.shuffle_window)

    @property
    def count(self) -> int:
        """Number of samples."""
        return self.manifest.sample_count

    def sample(self, sample: int) -> StoredSample:
        """Read sample 0 ≤ `sample` < count."""
        if not 0 <= sample < self.count:
            raise IndexError(f"sample {sample} of {self.count}")
        return self._reader.read(sample)

    def retries_shared(self) -> AbstractContextManager[None]:
        """Let the reads of a block share ``data.retry_seconds``."""
        return self._reader.retries_shared()

    def image(self, sample: int) -> Pixels:
        """Decode the image of a sample: uint8 (height, width, 3) as stored."""
        return self.decode(sample, self.sample(sample))

    def decode(self, sample: int, stored: StoredSample) -> Pixels:
        """Decode the image of a sample that was read already.

        Raises:
            DataError: it is damaged; names the sample and its shard.
        """
        return decode(stored.image, f"{stored.key} ({self._reader.name_of(sample)})")

    def evaluation_images(self, samples: Iterable[int], resolution: int) -> torch.Tensor:
        """Return real images to compare with: uint8 (B, 3, resolution, resolution).

        The shorter side is scaled to the resolution, then the center is cut: nothing random.
        """
        images = [
            center_crop(resize_shorter(self.image(sample), resolution), resolution)
            for sample in samples
        ]
        return stack(images, resolution)

    def caption(self, image_number: int, seed: int) -> tuple[int, str]:
        """Return (sample, text) that generated image `image_number` is made for.

        Image i takes sample i modulo the number of samples and one of its captions by
        (seed, i), so every sample is used equally often and no image depends on another.
        """
        sample = image_number % self.count
        captions = self.sample(sample).captions
        rng = generator(seed, "caption of a generated image", image_number)
        return sample, captions[int(rng.integers(len(captions)))]


@dataclass(frozen=True)
class StoredSample:
    """A sample as it is stored.

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
                "shard again or build the split again"
            )
        try:
            return _parse(text, image, IMAGE_FORMATS[row.image_format])
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


def stack(images: Iterable[Pixels], resolution: int = 0) -> torch.Tensor:
    """Return uint8 (B, 3, H, W) of equally large images (H, W, 3); of none (0, 3, R, R)."""
    import torch

    pixels = list(images)
    height, width = pixels[0].shape[:2] if pixels else (resolution, resolution)
    stacked = np.empty((len(pixels), 3, height, width), dtype=np.uint8)
    for place, image in zip(stacked, pixels, strict=True):
        place[:] = image.transpose(2, 0, 1)  # transposed and stacked in one copy
    return torch.from_numpy(stacked)


# --- opening


def open_vocabulary(config: DataConfig) -> Vocabulary:
    """Return the vocabulary in the folder ``config.path``, here or on a server.

    Where ``config.tokenizer`` names another encoder's tokenization, that takes its place.

    Raises:
        DataError: no such folder, or the vocabulary is missing or damaged.
    """
    if config.tokenizer:
        return WordPieces.load(Path(config.tokenizer))
    if is_remote(config.path, "data.path"):
        return fetch_vocabulary(config.path, Server(config.retry_seconds), open_cache(config))
    return Vocabulary.load(_folder(config) / VOCABULARY)


def _folder_of(config: DataConfig, split: str) -> Path:
    folder = _folder(config)
    if not (folder / split / MANIFEST).is_file():
        present = [path.parent.name for path in folder.glob(f"*/{MANIFEST}")]
        hint = "build it with t2i_hpc.shards"
        if present:
            offered = nearest(split, present)
            other = f"{hint} split={split}, or name another (data.train_split=, data.test_split=)"
            hint = offered if offered.startswith("did") else f"{other}; {offered}"
        raise DataError(f"{folder} has no split {split!r}: {hint}")
    return folder / split


def _folder(config: DataConfig) -> Path:
    if not config.path:
        raise DataError(
            "data.path= is missing: name a folder made by t2i_hpc.shards, or demo for the data "
            "that ships with t2i_hpc"
        )
    folder = local_folder(config.path)
    if not folder.is_dir():
        raise DataError(
            f"there is no folder {folder}: data.path= must name one made by t2i_hpc.shards"
        )
    return folder


def local_folder(path: str) -> Path:
    """Return the folder that `path` names; ``demo`` is the data that ships with t2i_hpc."""
    return resource("shards_demo") if path == DEMO else Path(path)


def open_storage(manifest: Manifest, config: DataConfig) -> Storage:
    """Return the storage of a split's shards.

    Raises:
        ConfigurationError: the cache is too small for a single shard.
        DataError: the cache's folder cannot be used.
    """
    if not is_remote(manifest.location, "data.path"):
        return LocalStorage(manifest, config.retry_seconds, shards_kept(config.shuffle_window))
    server = Server(config.retry_seconds)
    if config.remote_reads == "ranges":
        return RangedStorage(manifest, server)
    cache = open_cache(config)
    _check_room(manifest, config, cache)
    return CachedStorage(manifest, server, cache)


def _check_room(manifest: Manifest, config: DataConfig, cache: Cache) -> None:
    largest = int(manifest.table["bytes"].max())
    if largest > cache.limit:
        raise ConfigurationError(
            f"data.cache_gigabytes={config.cache_gigabytes:g} is less than a shard of "
            f"{size_text(largest)}: raise it or take data.remote_reads=ranges"
        )
    window = min(config.shuffle_window, manifest.shard_count) * largest
    room = cache.room()
    if window > cache.limit:
        small, more = f"data.cache_gigabytes={config.cache_gigabytes:g} holds", "raise it"
    elif window > room:
        small = f"the disk of {cache.folder} has room for {size_text(room)} of shards, which is"
        more = "name a folder on a larger one with data.cache="
    else:
        return
    logging.getLogger(__name__).warning(
        "%s less than the %d shards that are shuffled together (%s): shards will be fetched again "
        "and again; %s, lower data.shuffle_window or take data.remote_reads=ranges",
        small,
        min(config.shuffle_window, manifest.shard_count),
        size_text(window),
        more,
    )


def open_cache(config: DataConfig) -> Cache:
    """Return the node's cache.

    Raises:
        DataError: its folder cannot be used.
    """
    return Cache(config.cache, int(config.cache_gigabytes * 1e9), config.retry_seconds)


def shards_kept(window: int) -> int:
    """Return of how many shards rows and descriptors are kept: windows overlap at their ends."""
    return max(OPEN_FILES, 2 * window)
