"""A split that is open for reading: its manifest, its vocabulary and its samples."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import torch

from t2i_hpc.common.errors import DataError, nearest
from t2i_hpc.common.resources import resource
from t2i_hpc.common.seeds import generator
from t2i_hpc.config.data import DataConfig
from t2i_hpc.data.captions import Vocabulary, WordPieces
from t2i_hpc.data.format.manifest import MANIFEST, VOCABULARY, Manifest
from t2i_hpc.data.images import Pixels, center_crop, decode, resize_shorter
from t2i_hpc.data.reader import Reader, StoredSample
from t2i_hpc.data.storage import Storage, open_storage
from t2i_hpc.data.storage.remote import fetch_manifest, fetch_vocabulary, open_cache
from t2i_hpc.data.storage.server import Server
from t2i_hpc.data.storage.urls import is_remote, join, shown

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
        self._reader = Reader(manifest, storage, window)

    @classmethod
    def open(cls, config: DataConfig, split: str, check_tars: bool = True) -> Split:
        """Open ``config.path/<split>``, a folder here or on a server.

        The path ``demo`` is the data that ships with t2i_hpc.

        Args:
            config: where the data lies and how it is read.
            split: name of the split.
            check_tars: look whether its tars are there; one rank is enough for all.

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
            place = (
                shown(join(config.path, VOCABULARY))
                if manifest.location
                else (str(manifest.folder.parent / VOCABULARY))
            )
            manifest.check_vocabulary(vocabulary.sha256, place)
        return cls(manifest, vocabulary, open_storage(manifest, config), config.shuffle_window)

    @property
    def count(self) -> int:
        """Number of samples."""
        return self.manifest.sample_count

    def sample(self, index: int) -> StoredSample:
        """Read the sample at row `index` of the index, 0 ≤ index < count."""
        if not 0 <= index < self.count:
            raise IndexError(f"sample {index} of {self.count}")
        return self._reader.read(index)

    def patience_for_a_batch(self) -> AbstractContextManager[None]:
        """Let the reads of a block share ``data.retry_seconds``."""
        return self._reader.patience_for_a_batch()

    def image(self, index: int) -> Pixels:
        """Decode the image of a sample: uint8 (height, width, 3) as stored."""
        return self.decode(index, self.sample(index))

    def decode(self, index: int, sample: StoredSample) -> Pixels:
        """Decode the image of a sample that was read already.

        Raises:
            DataError: it is damaged; names the sample and its shard.
        """
        return decode(sample.image, f"{sample.key} ({self._reader.name_of(index)})")

    def evaluation_images(self, indices: Iterable[int], resolution: int) -> torch.Tensor:
        """Return real images to compare with: uint8 (B, 3, resolution, resolution).

        The shorter side is scaled to the resolution, then the center is cut: nothing random.
        """
        images = [
            center_crop(resize_shorter(self.image(index), resolution), resolution)
            for index in indices
        ]
        if not images:
            return torch.empty(0, 3, resolution, resolution, dtype=torch.uint8)
        return stack(images)

    def caption(self, image_number: int, seed: int) -> tuple[int, str]:
        """Return (sample index, text) that generated image `image_number` is made for.

        Image i takes sample i modulo the number of samples and one of its captions by
        (seed, i), so every sample is used equally often and no image depends on another.
        """
        index = image_number % self.count
        captions = self.sample(index).captions
        rng = generator(seed, "caption of a generated image", image_number)
        return index, captions[int(rng.integers(len(captions)))]


def stack(images: Iterable[Pixels]) -> torch.Tensor:
    """Return uint8 (B, 3, H, W) of equally large images (H, W, 3)."""
    pixels = list(images)
    height, width, channels = pixels[0].shape
    stacked = np.empty((len(pixels), channels, height, width), dtype=np.uint8)
    for place, image in zip(stacked, pixels, strict=True):
        place[:] = image.transpose(2, 0, 1)  # one copy, where two were
    return torch.from_numpy(stacked)


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
    folder = resource("shards_demo") if config.path == DEMO else Path(config.path)
    if not folder.is_dir():
        raise DataError(
            f"there is no folder {folder}: data.path= must name one made by t2i_hpc.shards"
        )
    return folder
