"""A split that is open: its manifest, its vocabulary, and its samples by number."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from t2i_hpc.common.errors import ConfigurationError, DataError, nearest
from t2i_hpc.common.files import resource, size_text
from t2i_hpc.common.seeds import generator
from t2i_hpc.config.data import DataConfig
from t2i_hpc.data.captions import Vocabulary, WordPieces
from t2i_hpc.data.format.manifest import (
    MANIFEST,
    VOCABULARY,
    Manifest,
)
from t2i_hpc.data.images import Pixels, center_crop, decode, resize_shorter
from t2i_hpc.data.storage.cache import Cache
from t2i_hpc.data.storage.fetching import Server, is_remote, join
from t2i_hpc.data.storage.local_shards import LocalStorage, Reads, Storage
from t2i_hpc.data.storage.object_stores import use_access
from t2i_hpc.data.storage.remote import CachedStorage, RangedStorage
from t2i_hpc.data.storage.remote_tables import fetch_manifest, fetch_vocabulary
from t2i_hpc.data.storage.retry import shown
from t2i_hpc.data.tar_reader import Reader, StoredSample, shards_kept

if TYPE_CHECKING:
    import torch  # checks of shards have no use for it, and it takes seconds to import

DEMO = "demo"


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
        self.storage: Storage = storage or LocalStorage(manifest)
        self._reader = Reader(manifest, self.storage, window)

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
        use_access(config)
        if is_remote(config.path, "data.path"):
            server, cache = Server(config.retry_seconds, config.connections), open_cache(config)
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

    @property
    def reads(self) -> Reads:
        """What was read of it by this process."""
        return self.storage.reads

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
        name = f"{stored.key} ({self._reader.name_of(sample)})"
        return stored.upright(decode(stored.image, name))

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
    if not is_remote(manifest.server, "data.path"):
        return LocalStorage(manifest, config.retry_seconds, shards_kept(config.shuffle_window))
    server = Server(config.retry_seconds, config.connections)
    if config.remote_reads == "ranges":
        return RangedStorage(manifest, server)
    cache = open_cache(config)
    _check_room(manifest, config, cache)
    return CachedStorage(manifest, server, cache)


def _check_room(manifest: Manifest, config: DataConfig, cache: Cache) -> None:
    largest = manifest.largest
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
