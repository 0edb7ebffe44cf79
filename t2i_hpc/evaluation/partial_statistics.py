"""What a side of a comparison is summed up to: named arrays that add up over its parts.

A collector looks at batches and keeps sums; the sums of all collectors are one flat mapping of
arrays, so that a part's file, its hash and the merge need not know what they mean. The one
thing that is no sum are the features themselves, which KID and precision/recall need: they are
kept as rows by image number, on request.

Parts of an evaluation: ranges of images, the file of each part's sums, the merge.

A part is a run of whole batches. The bits of a float32 feature depend on the size of the batch
and the image's row in it, so image i is always row i mod B of batch i div B, whatever the
number of parts (see :mod:`t2i_hpc.evaluation.compute`). Parts differ by at most one batch.

A file says what it is part of; the merge covers every image exactly once or refuses. Where
features are kept, they lie beside it as an ``.npy`` file, whose hash the part's file holds.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt
from numpy.typing import NDArray

from t2i_hpc.common.errors import EvaluationError
from t2i_hpc.common.files import atomic_writer

if TYPE_CHECKING:  # who only counts files imports no torch
    from torch import Tensor


Arrays = Mapping[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class Seen:
    """The images of a batch that count.

    Attributes:
        numbers: their numbers, n of them.
        images: uint8 (n, 3, R, R).
        features: float32 (n, D) on the detector's device.
        logits: float32 (n, C) on the detector's device; C is 0 without a classifier.
    """

    numbers: range
    images: Tensor
    features: Tensor
    logits: Tensor


class Collector(Protocol):
    """Keeps sums over images."""

    def add(self, seen: Seen) -> None:
        """Add the images of a batch."""

    def arrays(self) -> Arrays:
        """Return the sums as arrays that add up over parts."""


@dataclass(frozen=True)
class Statistic:
    """The sums that one metric needs of the images of a side.

    Attributes:
        names: of the collector's arrays.
        start: makes a fresh collector for one part.
        key: hash of the settings that these sums alone depend on, "" where the side says it all.
        wanted: whether a part without them is incomplete; others are kept where a part is
            computed anyway.
    """

    names: Sequence[str]
    start: Callable[[], Collector]
    key: str = ""
    wanted: bool = True

    def to_file(self, arrays: Arrays) -> dict[str, npt.NDArray[Any]]:
        """Return a collector's arrays under the names that a part's file has for them."""
        return {self._name(name): value for name, value in arrays.items()}

    def from_file(self, sums: Arrays) -> dict[str, npt.NDArray[Any]]:
        """Return this statistic's arrays from all that a part's file holds."""
        return {name: sums[self._name(name)] for name in self.names}

    @property
    def stored(self) -> frozenset[str]:
        """The names of its arrays in a part's file."""
        return frozenset(map(self._name, self.names))

    def _name(self, name: str) -> str:
        return f"{name}.{self.key}" if self.key else name


@dataclass(frozen=True)
class Contents:
    """What is kept of the images of a side.

    Attributes:
        statistics: the sums.
        rows: dtype in which features are kept by image number, "" where they are not.
    """

    statistics: Sequence[Statistic]
    rows: str = ""

    @property
    def names(self) -> frozenset[str]:
        """The names of the sums without which a part is incomplete."""
        return frozenset().union(*(one.stored for one in self.statistics if one.wanted))


_UNREADABLE = (OSError, EOFError, KeyError, TypeError, ValueError, zipfile.BadZipFile)
_HEADER, _DIGEST = "header", "sha256"


@dataclass(frozen=True)
class Target:
    """What parts must agree on to be merged.

    Attributes:
        side: "generated" or "real".
        protocol: hash of the images as the detector sees them.
        checkpoint: SHA-256 of the checkpoint, "" for real images.
        images: number of images in all.
        batch_size: images that went through generator and detector together.
    """

    side: str
    protocol: str
    checkpoint: str
    images: int
    batch_size: int


@dataclass(frozen=True)
class Header:
    """What a part's file says of itself: images `start` to `stop` − 1 of `target`.

    Attributes:
        rows: SHA-256 of the features beside it, by dtype; empty where none are kept.
        made_with: versions and devices that the images went through.
        job: the batch system's number of the job that computed it, "" for none.
    """

    target: Target
    start: int
    stop: int
    part: int
    parts: int
    rows: Mapping[str, str] = field(default_factory=dict)
    made_with: Sequence[Mapping[str, str]] = field(default_factory=list)
    job: str = ""


def part_range(images: int, parts: int, part: int, batch_size: int = 1) -> range:
    """Return the image numbers of part `part` (0-based) of `parts`; some may be empty.

    The ranges are contiguous, cover all images, begin at multiples of `batch_size` and differ
    in length by at most one batch.

    Raises:
        EvaluationError: there is no such part.
    """
    if not 0 <= part < parts:
        raise EvaluationError(
            f"evaluation.shard={part} does not exist: evaluation.shards={parts} makes the "
            f"shards 0 to {parts - 1}"
        )
    batches = -(-images // batch_size)
    small, larger = divmod(batches, parts)
    first = part * small + min(part, larger)
    last = first + small + (part < larger)
    return range(min(first * batch_size, images), min(last * batch_size, images))


def parts_of_rank(parts: int, rank: int, world: int) -> range:
    """Return the parts that rank `rank` computes when `world` ranks share the work."""
    return range(rank, parts, world)


def part_path(folder: Path, part: int, parts: int, batch_size: int) -> Path:
    """Return where a part's sums lie.

    Parts of unlike batch sizes hold unlike images and never overwrite each other; a whole side
    is the same score by any batch size.
    """
    whole = f"part-{part:05d}-of-{parts:05d}"
    return folder / (f"{whole}.npz" if parts == 1 else f"{whole}-batch-{batch_size}.npz")


def rows_path(path: Path, dtype: str) -> Path:
    """Return where the features of a part lie, if they are kept as `dtype`."""
    return path.with_suffix(f".{dtype}.npy")


def save_part(path: Path, header: Header, sums: Arrays) -> None:
    """Write a part's file atomically; its features, if any, must be there already."""
    text = np.array(json.dumps(dataclasses.asdict(header), sort_keys=True))
    arrays: dict[str, NDArray[Any]] = {_HEADER: text, **sums}
    with atomic_writer(path) as stream:
        np.savez(stream, allow_pickle=False, **{_DIGEST: np.array(_digest(arrays))}, **arrays)


def load_header(path: Path) -> Header:
    """Read what a part's file says of itself.

    Raises:
        EvaluationError: the file is missing or damaged.
    """
    return _parse(path, _read(path, [_HEADER]))


def load_part(path: Path) -> tuple[Header, dict[str, NDArray[Any]]]:
    """Read a part's file and check its content; return what it says of itself and its sums.

    Raises:
        EvaluationError: the file is missing or damaged.
    """
    arrays = _read(path)
    recorded = str(arrays.pop(_DIGEST, ""))
    header = _parse(path, arrays)
    if _digest(arrays) != recorded or int(arrays["count"]) != header.stop - header.start:
        raise _damaged(path, "its content does not match its SHA-256")
    del arrays[_HEADER]
    return header, arrays


def merge_parts(
    paths: Sequence[Path], target: Target, names: Iterable[str]
) -> dict[str, NDArray[Any]]:
    """Return the sums over all images of `target`, from parts in any order.

    They are the sums `names` and all others that every part holds. One part is in memory at a
    time.

    Raises:
        EvaluationError: a hole, an overlap, a foreign checkpoint, another protocol or side,
            a damaged file, too few images; the sentence names the file.
    """
    wanted = frozenset(names)
    merged: dict[str, NDArray[Any]] | None = None
    for path in check_cover(paths, target):
        _, sums = load_part(path)
        missing = sorted(wanted - sums.keys())
        if missing:
            raise _damaged(path, f"it does not hold {missing[0]}")
        merged = sums if merged is None else _added(merged, sums)
    return merged or {}


def _added(
    merged: dict[str, NDArray[Any]], sums: Mapping[str, NDArray[Any]]
) -> dict[str, NDArray[Any]]:
    """Add sums in place; those that one of the two lacks are left out."""
    both = {name: merged[name] for name in merged.keys() & sums.keys()}
    for name in both:
        both[name] += sums[name]
    return both


def check_cover(paths: Sequence[Path], target: Target) -> list[Path]:
    """Return the parts in the order of their images.

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
                "delete it and compute this part again"
            )


def _hole(start: int, stop: int, before: str) -> EvaluationError:
    return EvaluationError(
        f"images {start} to {stop - 1} are missing after {before}: compute the missing shards "
        "first (t2i_hpc.evaluate without evaluation.shard computes all that are missing)"
    )


def _damaged(path: Path, reason: object) -> EvaluationError:
    return EvaluationError(f"{path} is damaged ({reason}): delete it and compute it again")


def _read(path: Path, names: Sequence[str] | None = None) -> dict[str, NDArray[Any]]:
    if not path.is_file():
        raise EvaluationError(f"{path} is missing: compute this part first")
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in names or archive.files}
    except _UNREADABLE as error:
        raise _damaged(path, error) from error


def _parse(path: Path, arrays: Mapping[str, NDArray[Any]]) -> Header:
    try:
        values = json.loads(str(arrays[_HEADER]))
        return Header(**{**values, "target": Target(**values["target"])})
    except (KeyError, TypeError, ValueError) as error:
        raise _damaged(path, "it is no part of an evaluation") from error


def _digest(arrays: Arrays) -> str:
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
        digest.update(array.data if array.ndim and array.size else array.tobytes())
    return digest.hexdigest()
