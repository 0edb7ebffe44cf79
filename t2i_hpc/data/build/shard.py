"""Making one shard: tar first, then its rows, then the record that says it is done.

The bytes of a shard follow from its identity: settings, versions of the encoders, and its samples.
Source files count by path, size and time of their last change, so nothing is read for it. A
shard whose identity is the same as before need not be made again.
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from PIL import features

from t2i_hpc.common.errors import DataError
from t2i_hpc.common.files import (
    fsync_folder,
    sha256_of_file,
    sha256_of_json,
    write_bytes,
    write_json,
)
from t2i_hpc.config.data import ShardsConfig
from t2i_hpc.data.build.conversion import StoredImage, convert, is_verbatim
from t2i_hpc.data.build.sample_filter import SampleFilter, values_of
from t2i_hpc.data.build.sources import SourceSample
from t2i_hpc.data.build.sources.sample import BY_FILTER, LEFT_OUT, AddressedSamples
from t2i_hpc.data.build.workspace import GROUP, Build, DerivedIdentities, Workspace, disk_errors
from t2i_hpc.data.format.manifest import FORMAT
from t2i_hpc.data.format.tables import ROW, Index, sha256_of_rows
from t2i_hpc.data.format.tars import LARGEST_IMAGE, LARGEST_TEXT, SampleFiles, index_tar, write_tar
from t2i_hpc.data.sidecars import UnfitSample

_BUILD = 4  # raise it when the same samples and settings come to give other bytes
DIGITS = 32
_UNCLEAN = re.compile(r"[^A-Za-z0-9_-]+")
_LONGEST_NAME = 64
Rejection = dict[str, str]  # key, path, kind, reason


@dataclass
class ShardRecord:
    """What is known of a shard that is done.

    Attributes:
        identity: what its bytes follow from.
        count: number of its samples; 0: all were rejected, and there is no tar.
        bytes, sha256: of the tar.
        rows_sha256: of its rows of the index.
        smallest, largest: extremes of the shorter sides in pixels.
        formats: how often each image format occurs.
        small: images that are smaller than they might be.
        rejected: what was left out and why, in order.
        left_out: how many samples were left out for a reason that rejects nothing.
    """

    identity: str
    count: int = 0
    bytes: int = 0
    sha256: str = ""
    rows_sha256: str = ""
    smallest: int = 0
    largest: int = 0
    formats: dict[str, int] = field(default_factory=dict)
    small: int = 0
    rejected: list[Rejection] = field(default_factory=list)
    left_out: dict[str, int] = field(default_factory=dict)

    def add(self, image: StoredImage, small: bool) -> None:
        """Count a stored image."""
        self.smallest = min(self.smallest, image.side) if self.count else image.side
        self.largest = max(self.largest, image.side)
        self.formats[image.image_format] = self.formats.get(image.image_format, 0) + 1
        self.small += small
        self.count += 1


@dataclass(frozen=True)
class Task:
    """All that the shards of a build are made of.

    Attributes:
        config: what is made.
        samples: of the source, or of some groups of its tars.
        build: what is built.
        workspace: where.
        filter: what samples still have to pass.
        ranges: which samples each shard holds, where they come in groups.
    """

    config: ShardsConfig
    samples: Sequence[SourceSample]
    build: Build
    workspace: Workspace
    filter: SampleFilter | None = None
    ranges: Mapping[int, range] | None = None

    unit = "images"

    @property
    def title(self) -> str:
        """What is built, for people."""
        return f"{self.config.source}/{self.config.split}"

    @property
    def workers(self) -> int | None:
        """How many processes are wanted."""
        return self.config.workers

    def amount(self, shard: int) -> int:
        """Return how many samples a shard may hold."""
        return len(self.numbers(shard))

    def numbers(self, shard: int) -> range:
        """Return which samples a shard holds."""
        if self.ranges is not None:
            return self.ranges[shard]
        return shard_numbers(shard, len(self.samples), self.config)

    def make(self, shard: int, advance: Callable[[int], None]) -> ShardRecord:
        """Make a shard, or make it again, and record that it is done.

        Args:
            shard: its number.
            advance: called after each image.

        Raises:
            DataError: a file cannot be read, or the disk is full.
            TooManyRejected: this shard alone has more than the build allows.
        """
        with disk_errors(self.workspace.folder):
            self.workspace.record(shard).unlink(missing_ok=True)
            record = ShardRecord(self.build.identities[shard])
            rows = self._write(shard, record, advance)
            record.rows_sha256 = sha256_of_rows(rows)
            write_bytes(self.workspace.rows(shard), rows.tobytes())
            write_json(self.workspace.record(shard), asdict(record))
        return record

    def _write(self, shard: int, record: ShardRecord, advance: Callable[[int], None]) -> Index:
        """Write the tar under another name first; a tar without samples is not kept."""
        tar = self.workspace.tar(shard)
        for left in tar.parent.glob(f".{tar.name}.*.tmp"):  # of a build that was killed
            left.unlink(missing_ok=True)
        tar.unlink(missing_ok=True)
        temporary = tar.with_name(f".{tar.name}.{uuid.uuid4().hex[:8]}.tmp")
        try:
            write_tar(temporary, self._samples(shard, record, advance))
            rows = index_tar(temporary)
            if record.count:
                record.bytes, record.sha256 = temporary.stat().st_size, sha256_of_file(temporary)
                temporary.replace(tar)
                fsync_folder(tar.parent)
        finally:
            temporary.unlink(missing_ok=True)
        return rows

    def _samples(
        self, shard: int, record: ShardRecord, advance: Callable[[int], None]
    ) -> Iterator[SampleFiles]:
        begin = shard % GROUP if self.ranges is not None else shard  # of its group's, or of all
        for name, number in enumerate(self.numbers(shard), begin * self.config.shard_samples):
            sample = self.samples[number]
            try:
                yield self._sample(name, sample, record)
            except UnfitSample as unfit:
                if unfit.kind in LEFT_OUT:
                    record.left_out[unfit.kind] = record.left_out.get(unfit.kind, 0) + 1
                else:
                    self._reject(sample, unfit, record)
            advance(1)

    def _sample(self, number: int, sample: SourceSample, record: ShardRecord) -> SampleFiles:
        if self.filter and not sample.unfit and not self.filter(values_of(sample, self.filter)):
            raise UnfitSample(BY_FILTER, "")
        image = convert(sample, self.config)
        description: dict[str, object] = {
            "key": sample.key,
            "captions": list(sample.captions),
            "class": sample.class_id,
            "width": image.width,
            "height": image.height,
        }
        if sample.source:
            description["source"] = dict(sample.source)
        _refuse_outsized(sample, image, description)
        small = not is_verbatim(self.config) and image.side < self.config.size
        record.add(image, small)
        name = _UNCLEAN.sub("_", sample.key)[:_LONGEST_NAME]
        return SampleFiles(f"{number:09d}-{name}", image.content, image.image_format, description)

    def _reject(self, sample: SourceSample, rejected: UnfitSample, record: ShardRecord) -> None:
        record.rejected.append(rejection(sample, rejected.kind, rejected.reason))
        if len(record.rejected) > self.build.allowed:
            raise TooManyRejected(record.rejected)


class TooManyRejected(Exception):  # noqa: N818 - becomes a DataError with the list of all
    """More samples are rejected than the build allows; those of the unfinished shard."""

    def __init__(self, rejected: Sequence[Rejection] = ()) -> None:
        super().__init__()
        self.rejected = list(rejected)


def _refuse_outsized(sample: SourceSample, image: StoredImage, description: object) -> None:
    """Reject what readers of shards would refuse."""
    text = len(json.dumps(description, ensure_ascii=False).encode())
    if text > LARGEST_TEXT:
        raise UnfitSample(
            "outsized captions", f"{sample.name} has captions of {text:,} bytes: shorten them"
        )
    if len(image.content) > LARGEST_IMAGE:
        size = len(image.content)
        raise UnfitSample(
            "outsized image", f"{sample.name} is a file of {size:,} bytes: scale it down"
        )


def record_of(workspace: Workspace, shard: int, identity: str) -> ShardRecord | None:
    """Return the record of a shard if it is done: same identity, tar and rows whole."""
    try:
        content: dict[str, Any] = json.loads(workspace.record(shard).read_text(encoding="utf-8"))
        record = ShardRecord(**content)
        if record.identity != identity:
            return None
        if record.count and workspace.tar(shard).stat().st_size != record.bytes:
            return None
        return record if rows_of(workspace, shard, record) is not None else None
    except (OSError, ValueError, TypeError, RecursionError):
        return None


def rows_of(workspace: Workspace, shard: int, record: ShardRecord) -> Index | None:
    """Return the rows of a shard, of none if it has no samples; None if they are damaged."""
    rows: Index = np.frombuffer(workspace.rows(shard).read_bytes(), dtype=ROW)
    return rows if sha256_of_rows(rows) == record.rows_sha256 else None


def rejection(sample: SourceSample, kind: str, reason: str) -> Rejection:
    """Return the line of a sample in the list of those that were rejected."""
    return {"key": sample.key, "path": str(sample.path), "kind": kind, "reason": reason}


# --- identity


def shard_numbers(shard: int, samples: int, config: ShardsConfig) -> range:
    """Return which samples of the source a shard holds."""
    first = shard * config.shard_samples
    return range(first, min(first + config.shard_samples, samples))


def identities(
    samples: Sequence[SourceSample], config: ShardsConfig
) -> list[str] | DerivedIdentities:
    """Return the identity of each shard, in order.

    Raises:
        DataError: a source file is not there any more.
    """
    settings = settings_of(config)
    if isinstance(samples, AddressedSamples) and samples.digest:
        base = sha256_of_json({**settings, "samples": samples.digest})
        return DerivedIdentities(base, len(samples), config.shard_samples)
    root, state = Path(config.images), cache(_state)
    count = -(-len(samples) // config.shard_samples)
    found = []
    for shard in range(count):
        numbers = shard_numbers(shard, len(samples), config)
        if isinstance(samples, AddressedSamples):
            described = samples.identity(numbers)
        else:
            described = [_described(samples[number], root, state) for number in numbers]
        content = {**settings, "first": numbers.start, "samples": described}
        found.append(sha256_of_json(content)[:DIGITS])
    return found


def settings_of(config: ShardsConfig) -> dict[str, Any]:
    """Return the settings and versions that the bytes of shards follow from."""
    return {
        "build": [_BUILD, FORMAT],
        "image": [config.format, config.quality, config.size],
        "versions": [version("pillow"), version("simplejpeg")]
        + [features.version(name) for name in ("libjpeg_turbo", "zlib", "webp", "littlecms2")],
    }


def _described(sample: SourceSample, root: Path, state: Any) -> list[Any]:
    path = sample.path.relative_to(root) if sample.path.is_relative_to(root) else sample.path
    packed = sample.packed and [sample.packed.offset, sample.packed.count]
    return [
        sample.key,
        path.as_posix(),
        list(sample.captions),
        sample.class_id,
        sample.box and list(sample.box),
        packed,
        sample.orientation,
        sample.source,
        [sample.unfit.kind, sample.unfit.reason] if sample.unfit else state(sample.path),
    ]


def _state(path: Path) -> tuple[int, int]:
    """Return size in bytes and time of the last change in nanoseconds."""
    try:
        found = path.stat()
    except OSError as error:
        raise DataError(f"cannot read the image {path}: {error.strerror}") from error
    return found.st_size, found.st_mtime_ns
