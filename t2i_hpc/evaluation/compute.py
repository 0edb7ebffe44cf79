"""One process at a time: who asks for what another is computing waits and finds it done.

Draw the next batch in a thread while the last one is looked at.

Compute parts of an evaluation, keep those that are there, merge them.

The generated and the real side go the same way: a function draws images by their numbers, the
detector turns them into features, a part's file keeps the sums that the metrics need. Batches
are always whole and begin at multiples of the batch size: beyond the last image the function
is asked for numbers that do not count, and their rows are left out. So every image goes through
generator and detector in the same company under any number of parts.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Protocol, TypeVar

import torch

from t2i_hpc.common.errors import EvaluationError
from t2i_hpc.common.terminal import progress
from t2i_hpc.evaluation.detectors.detector import Detector, exact_inference
from t2i_hpc.evaluation.features import KeptRows, merge_rows, read_rows, rows_are_whole
from t2i_hpc.evaluation.kid import Rows
from t2i_hpc.evaluation.partial_statistics import (
    Arrays,
    Contents,
    Header,
    Seen,
    Target,
    check_cover,
    load_header,
    load_part,
    merge_parts,
    part_path,
    part_range,
    save_part,
)
from t2i_hpc.evaluation.protocol import made_with, sorted_once
from t2i_hpc.runs.sessions import job_of
from t2i_hpc.sampling.image_files import Draw

_LOG = logging.getLogger("t2i_hpc")
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EACCES)


@contextlib.contextmanager
def alone(path: Path) -> Iterator[None]:
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


ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")


def one_ahead(
    draw: Callable[[ItemT], ResultT], items: Iterable[ItemT]
) -> Iterator[tuple[ItemT, ResultT]]:
    """Give each item and what `draw` makes of it, in order; `draw` is called by one thread.

    At most one result waits. An error of `draw` is raised where its result would come.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="draw") as pool:
        waiting: tuple[ItemT, Future[ResultT]] | None = None
        for item in items:
            coming = item, pool.submit(draw, item)
            if waiting:
                yield waiting[0], waiting[1].result()
            waiting = coming
        if waiting:
            yield waiting[0], waiting[1].result()


Add = Callable[[Seen], None]


class Saved(Protocol):
    """Image files that are written beside the sums of a side."""

    def has(self, numbers: range) -> bool:
        """Whether the images of a part are there."""

    def finish(self, numbers: range) -> None:
        """End a part, all of whose images were given to the disk."""

    def gather(self) -> None:
        """End the side, all of whose parts were ended."""


@dataclass(frozen=True)
class Side:
    """One of the two sets of images that are compared.

    Attributes:
        target: what the parts' files must belong to.
        folder: where they lie.
        contents: which sums are kept of the images.
        draw: gives the images of any range of numbers, uint8 (B, 3, R, R); numbers from
            ``target.images`` on must give images too (which ones does not matter).
        saved: files that `draw` writes, where images are kept; a part without them is missing.
    """

    target: Target
    folder: Path
    contents: Contents
    draw: Draw
    saved: Saved | None = None

    def path_of(self, part: int, parts: int) -> Path:
        """Return where a part's sums lie."""
        return part_path(self.folder, part, parts, self.target.batch_size)

    @property
    def whole(self) -> Path:
        """Where the sums of all images lie."""
        return self.path_of(0, 1)


@dataclass(frozen=True)
class Division:
    """How the images of a side are split: `parts` parts of batches of `batch_size` images."""

    parts: int
    batch_size: int

    def range_of(self, target: Target, part: int) -> range:
        """Return the images of a part."""
        return part_range(target.images, self.parts, part, self.batch_size)


@dataclass(frozen=True)
class Merged:
    """All images of a side.

    Attributes:
        sums: of all of them.
        rows: their features (N, D), where they are kept.
        made_with: versions and devices that they went through.
    """

    sums: Arrays
    rows: Rows | None
    made_with: Sequence[Mapping[str, str]] = ()


def look_at_images(
    draw: Draw,
    detector: Detector,
    numbers: range,
    batch_size: int,
    add: Add,
) -> None:
    """Show the images `numbers`, which begin at a multiple of `batch_size`, to `add`.

    The next batch is drawn while the detector looks at one.

    Raises:
        ValueError: the range begins inside a batch.
    """
    if numbers and numbers.start % batch_size:
        raise ValueError(f"images {numbers} begin inside a batch of {batch_size}")
    firsts = range(numbers.start, numbers.stop, batch_size)
    # Set here, not in the detector alone: the flags are the process's, and a batch is drawn
    # in another thread meanwhile.
    with exact_inference():
        for first, images in one_ahead(lambda n: draw(range(n, n + batch_size)), firsts):
            wanted = min(batch_size, numbers.stop - first)
            features = detector.features(images)
            seen = range(first, first + wanted)
            logits = detector.logits(features, images)[:wanted]
            add(Seen(seen, images[:wanted], features[:wanted], logits))


def compute_part(side: Side, detector: Detector, division: Division, part: int) -> None:
    """Compute a part of a side and write its file, replacing one that is there."""
    numbers = division.range_of(side.target, part)
    path = side.path_of(part, division.parts)
    collectors = [(one, one.start()) for one in side.contents.statistics]
    kept = KeptRows(side.contents.rows) if side.contents.rows else None
    devices = set[torch.device]()
    title = f"{side.target.side} images, part {part + 1} of {division.parts}"
    with progress(title, len(numbers), "images") as advance:

        def add(seen: Seen) -> None:
            for _, collector in collectors:
                collector.add(seen)
            if kept:
                kept.add(seen.features)
            devices.add(seen.features.device)
            advance(len(seen.numbers))

        look_at_images(side.draw, detector, numbers, division.batch_size, add)
    sums = {k: v for one, each in collectors for k, v in one.to_file(each.arrays()).items()}
    header = Header(side.target, numbers.start, numbers.stop, part, division.parts)
    used = sorted_once(map(made_with, devices))
    header = replace(header, made_with=used, job=job_of(os.environ))
    if kept:
        digest = kept.save(path, detector.identity.width)
        header = replace(header, rows={side.contents.rows: digest})
    _save(side, path, header, sums)


def compute_missing(
    side: Side, detector: Detector, division: Division, chosen: Iterable[int]
) -> None:
    """Compute those of the `chosen` parts whose valid files are not there yet.

    Processes that ask for the same part wait for the one that computes it.
    """
    for part in chosen:
        if part_is_done(side, division, part):
            continue
        numbers = division.range_of(side.target, part)
        with alone(side.path_of(part, division.parts)):
            if not _sums_are_there(side, division, part):
                compute_part(side, detector, division, part)
            elif _lacks_images(side, numbers):
                _draw_part(side, division, part)
            if side.saved and _lacks_images(side, numbers):
                side.saved.finish(numbers)


def missing_parts(side: Side, division: Division) -> list[int]:
    """Return the parts that have images but no valid file, ascending."""
    return [part for part in range(division.parts) if not part_is_done(side, division, part)]


def part_is_done(side: Side, division: Division, part: int) -> bool:
    """Whether a part's files are whole and hold what is wanted; so is a part without images."""
    lacks_images = _lacks_images(side, division.range_of(side.target, part))
    return not lacks_images and _sums_are_there(side, division, part)


def _sums_are_there(side: Side, division: Division, part: int) -> bool:
    numbers = division.range_of(side.target, part)
    if not numbers or _is_done(side, side.path_of(part, division.parts), numbers):
        return True
    return _whole_is_done(side)


def _lacks_images(side: Side, numbers: range) -> bool:
    return bool(numbers) and side.saved is not None and not side.saved.has(numbers)


def _draw_part(side: Side, division: Division, part: int) -> None:
    """Draw the images of a part whose sums are there, for their files alone."""
    numbers = division.range_of(side.target, part)
    title = f"saving {side.target.side} images, part {part + 1} of {division.parts}"
    with progress(title, len(numbers), "images") as advance, exact_inference():
        for first in range(numbers.start, numbers.stop, division.batch_size):
            side.draw(range(first, first + division.batch_size))
            advance(min(division.batch_size, numbers.stop - first))


def merged(side: Side, division: Division) -> Merged:
    """Return the sums of all images of a side and keep them as one part.

    Raises:
        EvaluationError: parts are missing or do not fit together.
    """
    if not _whole_is_done(side):
        with alone(side.whole):
            if not _whole_is_done(side):
                _merge(side, division)
    rows = read_rows(side.whole, side.contents.rows) if side.contents.rows else None
    header, sums = load_part(side.whole)
    return Merged(sums, rows, header.made_with)


def spread(numbers: Iterable[int], wanted: int, count: int) -> list[int]:
    """Return the stored samples that stand for the real images `numbers`.

    `wanted` images are taken evenly spaced from `count` stored ones, since stored order often
    goes by class. Numbers beyond the last image begin again.
    """
    return [number % wanted * count // wanted for number in numbers]


def _merge(side: Side, division: Division) -> None:
    parts = [part for part in range(division.parts) if division.range_of(side.target, part)]
    paths = [side.path_of(part, division.parts) for part in parts]
    header = Header(side.target, 0, side.target.images, 0, 1)
    sums = merge_parts(paths, side.target, side.contents.names)
    ordered = check_cover(paths, side.target)
    used = sorted_once(one for path in ordered for one in load_header(path).made_with)
    header = replace(header, made_with=used)
    if side.contents.rows:
        digest = merge_rows(ordered, side.whole, side.contents.rows)
        header = replace(header, rows={side.contents.rows: digest})
    _save(side, side.whole, header, sums)


def _save(side: Side, path: Path, header: Header, sums: Arrays) -> None:
    """Write a part's file; what the one before holds of the same images is kept in it."""
    before = _valid(side, path, range(header.start, header.stop))
    if before is not None:
        known, others = before
        sums = {**others, **sums}
        used = sorted_once([*known.made_with, *header.made_with])
        header = replace(header, rows={**known.rows, **header.rows}, made_with=used)
    save_part(path, header, sums)


def _whole_is_done(side: Side) -> bool:
    return _is_done(side, side.whole, range(side.target.images))


def _is_done(side: Side, path: Path, numbers: range) -> bool:
    """Whether a file is whole and holds what is wanted of exactly these images."""
    found = _valid(side, path, numbers)
    if found is None:
        return False
    header, sums = found
    rows = side.contents.rows
    rows_missing = rows and not rows_are_whole(path, header, rows)
    return side.contents.names <= sums.keys() and not rows_missing


def _valid(side: Side, path: Path, numbers: range) -> tuple[Header, Arrays] | None:
    """Return a file's content if it is whole and of exactly these images.

    All images of a side are one score by any batch size; parts of unlike ones do not mix.
    """
    try:
        header, sums = load_part(path)
    except EvaluationError:
        return None
    target = header.target
    if path == side.whole:
        target = replace(target, batch_size=side.target.batch_size)
    same = (target, header.start, header.stop) == (side.target, numbers.start, numbers.stop)
    return (header, sums) if same else None
