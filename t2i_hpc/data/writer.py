"""From a source to a split on disk: convert, pack, describe, and only then show it.

The deterministic part of what training does to an image (decode, cut out the bird, scale the
shorter side down) is done once here, so that training reads small files. Everything is
written into a hidden folder and renamed at the end: a killed build leaves no half split, and
the next build clears it away.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from t2i_hpc.common.errors import DataError
from t2i_hpc.common.files import fsync_folder, sha256_of_file
from t2i_hpc.common.progress import progress
from t2i_hpc.config.data import ShardsConfig
from t2i_hpc.data.captions import Vocabulary
from t2i_hpc.data.images import Pixels, crop_box, decode, encode, resize_shorter, upright
from t2i_hpc.data.manifest import (
    VOCABULARY,
    Index,
    Manifest,
    Shard,
    save_tables,
    sha256_of_rows,
    shard_name,
)
from t2i_hpc.data.sources import SOURCES, SourceSample
from t2i_hpc.data.tars import Record, index_tar, write_tar

_UNCLEAN = re.compile(r"[^A-Za-z0-9_-]+")
_LONGEST_NAME = 64
_LONGEST_SHAPE = 32  # longer side over shorter side


@dataclass(frozen=True)
class _Stored:
    """Of a stored image: shorter side in pixels, format."""

    side: int
    image_format: str


def write_shards(config: ShardsConfig) -> Manifest:
    """Build one split of shards, and the vocabulary where there is none yet.

    Args:
        config: what to read, where to write, and how images are stored.

    Raises:
        DataError: the source does not fit together, an image cannot be decoded, the split is
            there already, or another build is writing into the same folder.
    """
    target = _target(config)
    samples = SOURCES[config.source](config)
    with _alone_in(target.parent):
        _refuse_existing(target)
        vocabulary = _vocabulary(config, samples)
        with _aside(target) as folder:
            _write_split(folder, samples[: config.limit], config)
            vocabulary.save(target.parent / VOCABULARY)
    return Manifest.load(target)


def _target(config: ShardsConfig) -> Path:
    if not config.output:
        raise DataError("output= is missing: name the folder to write, e.g. shards/mine")
    if _UNCLEAN.search(config.split) or not config.split:
        raise DataError(f"split={config.split} is no folder name: use letters, digits, - and _")
    target = Path(config.output) / config.split
    _refuse_existing(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"cannot make the folder output={config.output}: {error}") from error
    return target


def _refuse_existing(target: Path) -> None:
    if target.exists():
        raise DataError(f"{target} is there already: delete that folder to build it again")


@contextmanager
def _alone_in(output: Path) -> Iterator[None]:
    """Keep a second build out of the folder; the lock dies with the process."""
    descriptor = os.open(output, os.O_RDONLY)
    try:
        if not _lock(descriptor):
            raise DataError(f"another build is writing into {output}: wait until it has ended")
        yield
    finally:
        os.close(descriptor)


def _lock(descriptor: int) -> bool:
    """Return whether the folder is ours alone; a file system without locks says nothing."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


@contextmanager
def _aside(target: Path) -> Iterator[Path]:
    """Give a hidden folder that becomes `target` if the block ends well and vanishes if not."""
    folder = target.with_name(f".{target.name}.partial")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    try:
        yield folder
        fsync_folder(folder)
        folder.rename(target)
        fsync_folder(target.parent)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _vocabulary(config: ShardsConfig, samples: Sequence[SourceSample]) -> Vocabulary:
    """Return the vocabulary that is named, or that of the folder, or that of the captions."""
    present = Path(config.output) / VOCABULARY
    kept = Vocabulary.load(present) if present.exists() else None
    named = Vocabulary.load(Path(config.vocabulary)) if config.vocabulary else None
    if kept and named and kept.sha256 != named.sha256:
        raise DataError(
            f"{present} has other words than vocabulary={config.vocabulary}: splits of one "
            "folder share one vocabulary, so write to another output= or delete that file"
        )
    texts = [text for sample in samples for text in sample.captions]
    vocabulary = named or kept
    if vocabulary is None:
        return Vocabulary.from_captions(texts)
    _refuse_foreign(vocabulary, texts, config.vocabulary or str(present))
    return vocabulary


def _refuse_foreign(vocabulary: Vocabulary, texts: Sequence[str], name: str) -> None:
    unknown = sum(len(vocabulary.unknown(text)) for text in texts)
    words = unknown + sum(len(vocabulary.encode(text)) for text in texts)
    if unknown > words / 2:
        raise DataError(
            f"{unknown:,} of the {words:,} words of the captions are not in {name}: it belongs to "
            "other captions, so name another vocabulary= or write to another output="
        )


def _write_split(folder: Path, samples: Sequence[SourceSample], config: ShardsConfig) -> None:
    with progress(f"{config.source}/{config.split}", len(samples), "images") as advance:
        _pack(folder, samples, config, advance)


def _pack(
    folder: Path,
    samples: Sequence[SourceSample],
    config: ShardsConfig,
    advance: Callable[[int], None],
) -> None:
    shards: list[Shard] = []
    parts: list[Index] = []
    stored: list[_Stored] = []
    for first in range(0, len(samples), config.shard_samples):
        path = folder / shard_name(len(shards))
        numbers = range(first, min(first + config.shard_samples, len(samples)))
        write_tar(path, _records(samples, numbers, config, stored, advance))
        rows = index_tar(path)
        parts.append(rows)
        shards.append(
            Shard(
                len(shards),
                len(numbers),
                path.stat().st_size,
                sha256_of_file(path),
                sha256_of_rows(rows),
            )
        )
    sides = [image.side for image in stored]
    verbatim = samples[0].packed is not None
    Manifest(
        folder=folder,
        name=config.name or config.source,
        split=config.split,
        size=max(sides) if verbatim else config.size,
        smallest=min(sides),
        image_format=Counter(image.image_format for image in stored).most_common(1)[0][0],
        sample_count=len(samples),
        shard_count=len(shards),
        bytes=sum(shard.bytes for shard in shards),
        shards_sha256=save_tables(folder, shards, parts),
    ).save()


def _records(
    samples: Sequence[SourceSample],
    numbers: range,
    config: ShardsConfig,
    stored: list[_Stored],
    advance: Callable[[int], None],
) -> Iterator[Record]:
    """Convert the samples of one shard; `stored` gets what the manifest says of each image."""
    for number in numbers:
        sample = samples[number]
        image, content, image_format = _image_file(sample, config)
        height, width = image.shape[:2]
        stored.append(_Stored(min(height, width), image_format))
        description: dict[str, object] = {
            "key": sample.key,
            "captions": list(sample.captions),
            "class": sample.class_id,
            "width": width,
            "height": height,
        }
        name = _UNCLEAN.sub("_", sample.key)[:_LONGEST_NAME]
        yield Record(f"{number:09d}-{name}", content, image_format, description)
        advance(1)


def _image_file(sample: SourceSample, config: ShardsConfig) -> tuple[Pixels, bytes, str]:
    """Return the image as it is stored: pixels, file, format.

    Out of a tar the file is taken as it is, unless EXIF turns it: readers do not.
    """
    content = sample.read()
    decoded = decode(content, sample.name)
    image = upright(decoded, content) if sample.box is None else crop_box(decoded, sample.box)
    _refuse_strip(image, sample.name)
    if sample.packed is None:
        image = resize_shorter(image, config.size) if min(image.shape[:2]) > config.size else image
        return image, encode(image, config.format, config.quality), config.format
    form = sample.packed.image_format
    return image, content if image is decoded else encode(image, form, config.quality), form


def _refuse_strip(image: Pixels, name: str) -> None:
    shorter, longer = sorted(image.shape[:2])
    if not shorter:
        raise DataError(f"the bounding box of {name} lies outside the image: correct it")
    if longer > _LONGEST_SHAPE * shorter:
        raise DataError(
            f"{name} is a strip of {shorter} by {longer} pixels, of which a square crop "
            "shows nothing: leave it out"
        )
