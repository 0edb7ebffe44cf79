"""Partial statistics of an evaluation: a file for each shard, their merge.

A shard is a run of whole batches. The bits of a float32 feature depend on the size of the batch
and the image's row in it, so image i is always row i mod B of batch i div B, whatever the number
of shards (see :mod:`t2i_hpc.evaluation.compute`). Shards differ by at most one batch.

A file holds sums, named arrays that add up over shards, and says which images they are of; the
merge covers every image exactly once or refuses. Features are no sums: KID and precision/recall
read them by image number, memory-mapped from an ``.npy`` file beside. They are written before
the sums, whose file holds their hash: sums that are there vouch for their features.

numpy alone: a job's epilogue counts these files without torch.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import itertools
import json
import mmap
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from t2i_hpc.common.errors import EvaluationError
from t2i_hpc.common.files import atomic_writer, sha256_of_file

Arrays = Mapping[str, npt.NDArray[Any]]
Features = npt.NDArray[Any]
"""Features by image number, float (N, D)."""

_UNREADABLE = (OSError, EOFError, KeyError, TypeError, ValueError, zipfile.BadZipFile)
_HEADER, _DIGEST = "header", "sha256"
_BLOCK_ROWS = 4096


@dataclass(frozen=True)
class Target:
    """What shards must agree on to be merged.

    Attributes:
        image_set: "generated" or "real".
        protocol: hash of the images as the detector sees them.
        checkpoint: SHA-256 of the checkpoint, "" for real images.
        images: number of images in all.
        batch_size: images that went through generator and detector together.
    """

    image_set: str
    protocol: str
    checkpoint: str
    images: int
    batch_size: int


@dataclass(frozen=True)
class Header:
    """What a file says of itself: images `start` to `stop` − 1 of `target`.

    Attributes:
        features: SHA-256 of the features beside it, by dtype; empty where none are kept.
        made_with: versions and devices that the images went through.
        job: the batch system's number of the job that computed it, "" for none.
    """

    target: Target
    start: int
    stop: int
    shard: int
    shards: int
    features: Mapping[str, str] = field(default_factory=dict)
    made_with: Sequence[Mapping[str, str]] = field(default_factory=list)
    job: str = ""


@dataclass(frozen=True)
class PartialStatistics:
    """The content of a shard's file."""

    header: Header
    sums: dict[str, npt.NDArray[Any]]

    def save(self, path: Path) -> None:
        """Write the file atomically; the features, if any, must be there already."""
        text = np.array(json.dumps(dataclasses.asdict(self.header), sort_keys=True))
        arrays: dict[str, npt.NDArray[Any]] = {_HEADER: text, **self.sums}
        with atomic_writer(path) as stream:
            np.savez(stream, allow_pickle=False, **{_DIGEST: np.array(_digest(arrays))}, **arrays)

    @classmethod
    def load(cls, path: Path) -> PartialStatistics:
        """Read a file and check its content.

        Raises:
            EvaluationError: the file is missing or damaged.
        """
        arrays = _read(path)
        recorded = str(arrays.pop(_DIGEST, ""))
        header = _parse(path, arrays)
        if _digest(arrays) != recorded or int(arrays["count"]) != header.stop - header.start:
            raise _damaged(path, "its content does not match its SHA-256")
        del arrays[_HEADER]
        return cls(header, arrays)


def load_header(path: Path) -> Header:
    """Read what a file says of itself, not its sums.

    Raises:
        EvaluationError: the file is missing or damaged.
    """
    return _parse(path, _read(path, [_HEADER]))


def shard_range(images: int, shards: int, shard: int, batch_size: int = 1) -> range:
    """Return the image numbers of shard `shard` (0-based) of `shards`; some may be empty.

    The ranges are contiguous, cover all images, begin at multiples of `batch_size` and differ
    in length by at most one batch.

    Raises:
        EvaluationError: there is no such shard.
    """
    if not 0 <= shard < shards:
        raise EvaluationError(
            f"evaluation.shard={shard} does not exist: evaluation.shards={shards} makes the "
            f"shards 0 to {shards - 1}"
        )
    batches = -(-images // batch_size)
    small, larger = divmod(batches, shards)
    first = shard * small + min(shard, larger)
    last = first + small + (shard < larger)
    return range(min(first * batch_size, images), min(last * batch_size, images))


def shards_of_rank(shards: int, rank: int, world: int) -> range:
    """Return the shards that rank `rank` computes when `world` ranks share the work."""
    return range(rank, shards, world)


def shard_path(folder: Path, shard: int, shards: int, batch_size: int) -> Path:
    """Return the path of a shard's sums.

    Shards of unlike batch sizes hold unlike images and never overwrite each other; all images
    together are the same score by any batch size.
    """
    name = f"shard-{shard:05d}-of-{shards:05d}"
    return folder / (f"{name}.npz" if shards == 1 else f"{name}-batch-{batch_size}.npz")


def shard_pattern(shard: int | None) -> str:
    """Return the glob pattern of a shard's files of sums; of all shards' where it is None."""
    return "shard-*.npz" if shard is None else f"shard-{shard:05d}-of-*.npz"


def features_path(path: Path, dtype: str) -> Path:
    """Return the path of the features beside a shard's sums, if they are kept as `dtype`."""
    return path.with_suffix(f".{dtype}.npy")


def merge_sums(
    paths: Sequence[Path], target: Target, names: Iterable[str]
) -> dict[str, npt.NDArray[Any]]:
    """Return the sums over all images of `target`, from shards in any order.

    They are the sums `names` and all others that every shard holds. One shard is in memory at a
    time.

    Raises:
        EvaluationError: a hole, an overlap, a foreign checkpoint, another protocol or image set,
            a damaged file, too few images; the sentence names the file.
    """
    wanted = frozenset(names)
    merged: dict[str, npt.NDArray[Any]] | None = None
    for path in check_cover(paths, target):
        sums = PartialStatistics.load(path).sums
        missing = sorted(wanted - sums.keys())
        if missing:
            raise _damaged(path, f"it does not hold {missing[0]}")
        merged = sums if merged is None else _added(merged, sums)
    return merged or {}


def _added(
    merged: dict[str, npt.NDArray[Any]], sums: Mapping[str, npt.NDArray[Any]]
) -> dict[str, npt.NDArray[Any]]:
    """Add sums in place; those that one of the two lacks are left out."""
    both = {name: merged[name] for name in merged.keys() & sums.keys()}
    for name in both:
        both[name] += sums[name]
    return both


def check_cover(paths: Sequence[Path], target: Target) -> list[Path]:
    """Return the shards in the order of their images.

    Raises:
        EvaluationError: they are not exactly the images of `target`.
    """
    headers = [(load_header(path), path) for path in paths]
    headers.sort(key=lambda item: (item[0].start, item[0].stop))
    reached, before = 0, "the beginning"
    for header, path in headers:
        _check_target(header, target, path)
        if header.start > reached:
            raise _hole(reached, header.start, before)
        if header.start < reached:
            raise EvaluationError(
                f"{path} overlaps {before}: images {header.start} to "
                f"{min(reached, header.stop) - 1} are in both; delete one of the two"
            )
        reached, before = header.stop, str(path)
    if reached < target.images:
        raise _hole(reached, target.images, before)
    return [path for _, path in headers]


def _check_target(header: Header, target: Target, path: Path) -> None:
    for item in dataclasses.fields(Target):
        found, wanted = getattr(header.target, item.name), getattr(target, item.name)
        if found != wanted:
            what = item.name.replace("_", " ")
            raise EvaluationError(
                f"{path} belongs to another {what} ({found or 'none'}, not {wanted or 'none'}): "
                "delete it and compute this shard again"
            )


def write_features(
    path: Path, blocks: Iterable[Features], count: int, width: int, dtype: str
) -> str:
    """Write features (count, width) atomically, given in blocks of rows; return their SHA-256."""
    digest, head = hashlib.sha256(), io.BytesIO()
    form = {"descr": np.dtype(dtype).str, "fortran_order": False, "shape": (count, width)}
    np.lib.format.write_array_header_1_0(head, form)
    with atomic_writer(path) as stream:
        rows = (np.ascontiguousarray(block, dtype).data for block in blocks)
        for part in itertools.chain([memoryview(head.getvalue())], rows):
            digest.update(part)
            stream.write(part)
    return digest.hexdigest()


def read_features(path: Path, dtype: str) -> Features:
    """Map the features beside the sums at `path`: float (N, D), read-only.

    Raises:
        EvaluationError: they are missing or damaged.
    """
    try:
        features: Features = np.load(features_path(path, dtype), mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise EvaluationError(
            f"{features_path(path, dtype)} cannot be read ({error}): delete {path.name} and "
            "compute it again"
        ) from error
    return features


def in_memory(features: Features) -> npt.NDArray[np.float32]:
    """Return a copy, float32 (N, D); of a mapped file no page stays in memory beside it."""
    copy = np.empty(features.shape, np.float32)
    for start in range(0, len(copy), _BLOCK_ROWS):
        copy[start : start + _BLOCK_ROWS] = features[start : start + _BLOCK_ROWS]
        release(features)
    return copy


def release(features: Features) -> None:
    """Let the pages of a mapped file go, which count as this process's memory otherwise."""
    mapped = features.base
    if isinstance(features, np.memmap) and isinstance(mapped, mmap.mmap):
        with contextlib.suppress(OSError):  # it is a favor, and a file system may not know it
            mapped.madvise(mmap.MADV_DONTNEED)


def features_are_whole(path: Path, header: Header, dtype: str) -> bool:
    """Whether the features beside the sums at `path` are those that the sums were made with."""
    there, recorded = features_path(path, dtype), header.features.get(dtype)
    return bool(recorded) and there.is_file() and sha256_of_file(there) == recorded


def merge_features(paths: Sequence[Path], whole: Path, dtype: str) -> str:
    """Write the features of shards, in the order given, beside `whole`; return their SHA-256.

    Raises:
        EvaluationError: a shard's features are missing or damaged.
    """
    for path in paths:
        if not features_are_whole(path, load_header(path), dtype):
            raise EvaluationError(
                f"{features_path(path, dtype)} is missing or damaged: delete {path.name} and "
                "compute it again"
            )
    mapped = [read_features(path, dtype) for path in paths]
    blocks = (
        rows[start : start + _BLOCK_ROWS]
        for rows in mapped
        for start in range(0, len(rows), _BLOCK_ROWS)
    )
    count, width = sum(map(len, mapped)), mapped[0].shape[1]
    return write_features(features_path(whole, dtype), blocks, count, width, dtype)


def _hole(start: int, stop: int, before: str) -> EvaluationError:
    return EvaluationError(
        f"images {start} to {stop - 1} are missing after {before}: compute the missing shards "
        "first (t2i_hpc.evaluate without evaluation.shard computes all that are missing)"
    )


def _damaged(path: Path, reason: object) -> EvaluationError:
    return EvaluationError(f"{path} is damaged ({reason}): delete it and compute it again")


def _read(path: Path, names: Sequence[str] | None = None) -> dict[str, npt.NDArray[Any]]:
    if not path.is_file():
        raise EvaluationError(f"{path} is missing: compute this shard first")
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in names or archive.files}
    except _UNREADABLE as error:
        raise _damaged(path, error) from error


def _parse(path: Path, arrays: Arrays) -> Header:
    try:
        values = json.loads(str(arrays[_HEADER]))
        return Header(**{**values, "target": Target(**values["target"])})
    except (KeyError, TypeError, ValueError) as error:
        raise _damaged(path, "it holds no partial statistics") from error


def _digest(arrays: Arrays) -> str:
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
        digest.update(array.data if array.ndim and array.size else array.tobytes())
    return digest.hexdigest()
