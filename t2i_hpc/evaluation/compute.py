"""Compute partial statistics shard by shard, keep those that are there, merge them.

Generated and real images go the same way: a function gives images by number, the detector
extracts features, a shard's file keeps the sums that the metrics need. Batches are always whole
and begin at multiples of the batch size: beyond the last image the function is asked for numbers
that do not count, and their rows are left out. So every image goes through generator and
detector in the same batch under any number of shards.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Protocol

import torch

from t2i_hpc.common.errors import EvaluationError
from t2i_hpc.common.terminal import progress
from t2i_hpc.evaluation.collectors import FeatureBatch, Statistic
from t2i_hpc.evaluation.detectors.detector import Detector, exact_inference
from t2i_hpc.evaluation.pipeline import extract_features
from t2i_hpc.evaluation.protocol import made_with, sorted_once
from t2i_hpc.runs.partial_statistics import (
    Arrays,
    Features,
    Header,
    PartialStatistics,
    Target,
    check_cover,
    features_are_whole,
    features_path,
    load_header,
    merge_features,
    merge_sums,
    read_features,
    shard_path,
    shard_range,
    write_features,
)
from t2i_hpc.runs.sessions import job_of
from t2i_hpc.sampling.image_files import ImagesOf

_LOG = logging.getLogger("t2i_hpc")
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EACCES)
_IDLE = 0.05  # share of its time that a detector may wait for images without a word


class SavedFiles(Protocol):
    """Image files that are written beside the sums of an image set."""

    def has(self, numbers: range) -> bool:
        """Whether the images of a shard are there."""

    def finish(self, numbers: range) -> None:
        """End a shard, all of whose images were given to the disk."""

    def gather(self) -> None:
        """End the set, all of whose shards were ended."""


@dataclass(frozen=True)
class ImageSet:
    """One of the two sets of images that are compared: the generated or the real ones.

    Attributes:
        target: what its files must belong to.
        folder: of the files.
        statistics: the sums that are kept.
        dtype: in which features are kept by image number, "" where they are not.
        images_of: gives images by number, uint8 (B, 3, R, R); numbers from ``target.images`` on
            must give images too (which ones does not matter).
        saved: files that `images_of` writes, where images are kept; a shard without them is
            missing.
    """

    target: Target
    folder: Path
    statistics: Sequence[Statistic]
    dtype: str
    images_of: ImagesOf
    saved: SavedFiles | None = None

    def path_of(self, shard: int, shards: int) -> Path:
        """Return the path of a shard's sums."""
        return shard_path(self.folder, shard, shards, self.target.batch_size)

    @property
    def whole(self) -> Path:
        """The path of the sums of all images."""
        return self.path_of(0, 1)

    @property
    def wanted(self) -> frozenset[str]:
        """The names of the sums without which a shard is incomplete."""
        return frozenset().union(*(one.stored for one in self.statistics if one.wanted))


@dataclass(frozen=True)
class Sharding:
    """How an image set is split: into `shards` shards of batches of `batch_size` images."""

    shards: int
    batch_size: int

    def range_of(self, target: Target, shard: int) -> range:
        """Return the images of a shard."""
        return shard_range(target.images, self.shards, shard, self.batch_size)


@dataclass(frozen=True)
class MergedStatistics:
    """Statistics of a whole image set.

    Attributes:
        sums: over all images.
        features: of all images (N, D), where they are kept.
        made_with: versions and devices that the images went through.
    """

    sums: Arrays
    features: Features | None
    made_with: Sequence[Mapping[str, str]] = ()


def compute_shard(image_set: ImageSet, detector: Detector, sharding: Sharding, shard: int) -> None:
    """Compute a shard and write its file, replacing one that is there."""
    numbers = sharding.range_of(image_set.target, shard)
    path = image_set.path_of(shard, sharding.shards)
    collectors = [(one, one.start()) for one in image_set.statistics]
    blocks: list[Features] = []
    devices = set[torch.device]()
    title = f"{image_set.target.image_set} images, shard {shard} of {sharding.shards}"
    with progress(title, len(numbers), "images") as advance:

        def add(batch: FeatureBatch) -> None:
            for _, collector in collectors:
                collector.add(batch)
            if image_set.dtype:
                blocks.append(batch.features.cpu().numpy().astype(image_set.dtype))
            devices.add(batch.features.device)
            advance(len(batch.numbers))

        waiting = extract_features(image_set.images_of, detector, numbers, sharding.batch_size, add)
    if waiting.share > _IDLE:
        _LOG.info("%s: the detector waited %.0f %% of the time", title, 100 * waiting.share)
    sums = {k: v for one, each in collectors for k, v in one.to_file(each.arrays()).items()}
    header = Header(
        image_set.target,
        numbers.start,
        numbers.stop,
        shard,
        sharding.shards,
        made_with=sorted_once(map(made_with, devices)),
        job=job_of(os.environ),
    )
    if image_set.dtype:
        beside, width = features_path(path, image_set.dtype), detector.identity.width
        digest = write_features(beside, blocks, len(numbers), width, image_set.dtype)
        header = replace(header, features={image_set.dtype: digest})
    _save(image_set, path, PartialStatistics(header, sums))


def compute_missing(
    image_set: ImageSet, detector: Detector, sharding: Sharding, chosen: Iterable[int]
) -> None:
    """Compute those of the `chosen` shards whose valid files are not there yet.

    Processes that ask for the same shard wait for the one that computes it.
    """
    for shard in chosen:
        if shard_is_done(image_set, sharding, shard):
            continue
        numbers = sharding.range_of(image_set.target, shard)
        with file_lock(image_set.path_of(shard, sharding.shards)):
            if not _sums_are_there(image_set, sharding, shard):
                compute_shard(image_set, detector, sharding, shard)
            elif _lacks_images(image_set, numbers):
                _save_images(image_set, sharding, shard)
            if image_set.saved and _lacks_images(image_set, numbers):
                image_set.saved.finish(numbers)


def shards_without_file(image_set: ImageSet, sharding: Sharding) -> list[int]:
    """Return the shards that have images but no valid file, ascending."""
    return [n for n in range(sharding.shards) if not shard_is_done(image_set, sharding, n)]


def shard_is_done(image_set: ImageSet, sharding: Sharding, shard: int) -> bool:
    """Whether a shard's files are whole and hold what is wanted; so is one without images."""
    lacks_images = _lacks_images(image_set, sharding.range_of(image_set.target, shard))
    return not lacks_images and _sums_are_there(image_set, sharding, shard)


def merged(image_set: ImageSet, sharding: Sharding) -> MergedStatistics:
    """Return the statistics of all images and keep them as one shard.

    Raises:
        EvaluationError: shards are missing or do not fit together.
    """
    whole, dtype = image_set.whole, image_set.dtype
    if not _whole_is_done(image_set):
        with file_lock(whole):
            if not _whole_is_done(image_set):
                _merge(image_set, sharding)
    content = PartialStatistics.load(whole)
    features = read_features(whole, dtype) if dtype else None
    return MergedStatistics(content.sums, features, content.header.made_with)


@contextlib.contextmanager
def file_lock(path: Path) -> Iterator[None]:
    """Run the block while no other process runs one for the same `path`.

    The system gives the lock back when its holder dies. On a file system without locks nobody
    waits: the work is then done twice, each file being written whole or not at all.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(f".{path.name}.lock").open("ab") as stream:
        _take(stream, path)
        yield


def _take(stream: IO[bytes], path: Path) -> None:
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return
    except BlockingIOError:
        _LOG.info("%s: another process computes it, waiting", path)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        return
    fcntl.flock(stream, fcntl.LOCK_EX)


def _merge(image_set: ImageSet, sharding: Sharding) -> None:
    target, dtype = image_set.target, image_set.dtype
    shards = [shard for shard in range(sharding.shards) if sharding.range_of(target, shard)]
    paths = [image_set.path_of(shard, sharding.shards) for shard in shards]
    sums = merge_sums(paths, target, image_set.wanted)
    ordered = check_cover(paths, target)
    used = sorted_once(one for path in ordered for one in load_header(path).made_with)
    features = {dtype: merge_features(ordered, image_set.whole, dtype)} if dtype else {}
    header = Header(target, 0, target.images, 0, 1, features, used)
    _save(image_set, image_set.whole, PartialStatistics(header, sums))


def _save(image_set: ImageSet, path: Path, content: PartialStatistics) -> None:
    """Write a file; what the one before holds of the same images is kept in it."""
    header = content.header
    before = _valid(image_set, path, range(header.start, header.stop))
    if before is not None:
        used = sorted_once([*before.header.made_with, *header.made_with])
        features = {**before.header.features, **header.features}
        header = replace(header, features=features, made_with=used)
        content = PartialStatistics(header, {**before.sums, **content.sums})
    content.save(path)


def _save_images(image_set: ImageSet, sharding: Sharding, shard: int) -> None:
    """Generate the images of a shard whose sums are there, for their files alone."""
    numbers = sharding.range_of(image_set.target, shard)
    title = f"saving {image_set.target.image_set} images, shard {shard} of {sharding.shards}"
    with progress(title, len(numbers), "images") as advance, exact_inference():
        for first in range(numbers.start, numbers.stop, sharding.batch_size):
            image_set.images_of(range(first, first + sharding.batch_size))
            advance(min(sharding.batch_size, numbers.stop - first))


def _lacks_images(image_set: ImageSet, numbers: range) -> bool:
    return bool(numbers) and image_set.saved is not None and not image_set.saved.has(numbers)


def _sums_are_there(image_set: ImageSet, sharding: Sharding, shard: int) -> bool:
    numbers = sharding.range_of(image_set.target, shard)
    if not numbers or _is_done(image_set, image_set.path_of(shard, sharding.shards), numbers):
        return True
    return _whole_is_done(image_set)


def _whole_is_done(image_set: ImageSet) -> bool:
    return _is_done(image_set, image_set.whole, range(image_set.target.images))


def _is_done(image_set: ImageSet, path: Path, numbers: range) -> bool:
    """Whether a file is whole and holds what is wanted of exactly these images."""
    found = _valid(image_set, path, numbers)
    if found is None or not image_set.wanted <= found.sums.keys():
        return False
    dtype = image_set.dtype
    return not dtype or features_are_whole(path, found.header, dtype)


def _valid(image_set: ImageSet, path: Path, numbers: range) -> PartialStatistics | None:
    """Return a file's content if it is whole and of exactly these images.

    All images of a set are one score by any batch size; shards of unlike ones do not mix.
    """
    try:
        found = PartialStatistics.load(path)
    except EvaluationError:
        return None
    header, target = found.header, found.header.target
    if path == image_set.whole:
        target = replace(target, batch_size=image_set.target.batch_size)
    same = (target, header.start, header.stop) == (image_set.target, numbers.start, numbers.stop)
    return found if same else None
