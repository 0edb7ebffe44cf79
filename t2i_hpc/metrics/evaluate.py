"""Compute parts of an evaluation, keep those that are there, merge them into a distance.

The generated and the real side go the same way: a function draws images by their numbers, the
detector turns them into features, a part's file keeps their moments. Batches are always whole
and begin at multiples of the batch size: beyond the last image the function is asked for
numbers that do not count, and their rows are left out. So every image goes through generator
and detector in the same company under any number of parts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from t2i_hpc.common.errors import EvaluationError
from t2i_hpc.common.progress import progress
from t2i_hpc.metrics.detectors.base import Detector
from t2i_hpc.metrics.moments import Moments
from t2i_hpc.metrics.parts import (
    Header,
    Target,
    load_part,
    merge_parts,
    part_path,
    part_range,
    save_part,
)

Draw = Callable[[range], Tensor]


@dataclass(frozen=True)
class Side:
    """One of the two sets of images that are compared.

    Attributes:
        target: what the parts' files must belong to.
        folder: where they lie.
        draw: gives the images of any range of numbers, uint8 (B, 3, R, R); numbers from
            ``target.images`` on must give images too (which ones does not matter).
    """

    target: Target
    folder: Path
    draw: Draw


@dataclass(frozen=True)
class Division:
    """How the images of a side are split: `parts` parts of batches of `batch_size` images."""

    parts: int
    batch_size: int


def compute_part(
    draw: Draw,
    detector: Detector,
    numbers: range,
    batch_size: int,
    advance: Callable[[int], None],
) -> Moments:
    """Return the moments of the images `numbers`, which begin at a multiple of `batch_size`.

    Args:
        draw: gives uint8 (batch_size, 3, R, R) for a range of batch_size numbers.
        detector: gives the features.
        numbers: the images that count.
        batch_size: images at a time.
        advance: told the number of images of each batch that is done.

    Raises:
        ValueError: the range begins inside a batch.
    """
    if numbers and numbers.start % batch_size:
        raise ValueError(f"images {numbers} begin inside a batch of {batch_size}")
    moments: Moments | None = None
    for first in range(numbers.start, numbers.stop, batch_size):
        wanted = min(batch_size, numbers.stop - first)
        features = detector.features(draw(range(first, first + batch_size)))[:wanted]
        moments = moments or Moments.empty(detector.width, features.device)
        moments.add(features)
        advance(wanted)
    return moments or Moments.empty(detector.width)


def compute_missing(
    side: Side, detector: Detector, division: Division, chosen: Iterable[int]
) -> None:
    """Compute those of the `chosen` parts whose valid files are not there yet."""
    if _is_done(part_path(side.folder, 0, 1), side.target, range(side.target.images)):
        return
    for part in chosen:
        numbers = part_range(side.target.images, division.parts, part, division.batch_size)
        path = part_path(side.folder, part, division.parts)
        if numbers and not _is_done(path, side.target, numbers):
            title = f"{side.target.side} images, part {part + 1} of {division.parts}"
            with progress(title, len(numbers), "images") as advance:
                moments = compute_part(side.draw, detector, numbers, division.batch_size, advance)
            header = Header(side.target, numbers.start, numbers.stop, part, division.parts)
            save_part(path, header, moments)


def merged_moments(side: Side, division: Division) -> Moments:
    """Return the moments of all images of a side and keep them as one part.

    Raises:
        EvaluationError: parts are missing or do not fit together.
    """
    images, parts = side.target.images, division.parts
    whole = part_path(side.folder, 0, 1)
    if _is_done(whole, side.target, range(images)):
        return load_part(whole)[1]
    ranges = [part_range(images, parts, part, division.batch_size) for part in range(parts)]
    paths = [part_path(side.folder, part, parts) for part in range(parts) if ranges[part]]
    merged = merge_parts(paths, side.target)
    save_part(whole, Header(side.target, 0, images, 0, 1), merged)
    return merged


def spread(numbers: Iterable[int], wanted: int, count: int) -> list[int]:
    """Return the stored samples that stand for the real images `numbers`.

    `wanted` images are taken evenly spaced from `count` stored ones, since stored order often
    goes by class. Numbers beyond the last image begin again.
    """
    return [number % wanted * count // wanted for number in numbers]


def _is_done(path: Path, target: Target, numbers: range) -> bool:
    """Return whether a file is whole and holds exactly these images of `target`."""
    try:
        header, _ = load_part(path)
    except EvaluationError:
        return False
    return (header.target, header.start, header.stop) == (target, numbers.start, numbers.stop)
