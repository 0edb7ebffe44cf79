"""One image on its way into a shard: checked, decoded, cut, scaled, encoded; or rejected.

This is what training would do to an image in the same way each time, done once, so that training
reads small files. What all images of a build will need on the disk is estimated here as well.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from t2i_hpc.common.errors import DataError
from t2i_hpc.config.data import ShardsConfig
from t2i_hpc.data.build.sources import SourceSample
from t2i_hpc.data.format.manifest import ORIGINAL, Storing
from t2i_hpc.data.image_headers import check_image, dimensions, other_format
from t2i_hpc.data.images import (
    RESAMPLING,
    Pixels,
    crop_box,
    decode,
    encode,
    notes_of,
    resize_shorter,
    to_srgb,
    turn,
)
from t2i_hpc.data.sidecars import UnfitSample

LOSSLESS = "png"
UNDECODABLE = "image that cannot be decoded"
_LONGEST_SHAPE = 32  # longer side over shorter side
_REMEDY = "replace it by a whole JPEG, PNG or WebP image or leave it out"
_TRIED = 8  # images by which the space is estimated
_RESERVE = 1.1
_AROUND = 2048  # bytes: two headers, two paddings, the description without captions, the index


@dataclass(frozen=True)
class StoredImage:
    """An image as it is stored: file, format, width and height in pixels."""

    content: bytes
    image_format: str
    width: int
    height: int

    @property
    def side(self) -> int:
        """The shorter side in pixels."""
        return min(self.width, self.height)


def is_verbatim(config: ShardsConfig) -> bool:
    """Say whether image files are kept byte for byte where that is possible."""
    return config.format == ORIGINAL


def storing(config: ShardsConfig) -> Storing:
    """Return what the manifest records of the way from source to shard."""
    if is_verbatim(config):
        return Storing(ORIGINAL, 0, "none")
    quality = 0 if config.format == LOSSLESS else config.quality
    return Storing(config.format, quality, RESAMPLING)


def convert(sample: SourceSample, config: ShardsConfig) -> StoredImage:
    """Return an image as it is to be stored.

    Raises:
        UnfitSample: the sample cannot be used: another try would give the same.
        DataError: the file cannot be read, which another try may be able to.
    """
    if sample.unfit is not None:
        raise UnfitSample(sample.unfit.kind, sample.unfit.reason)
    content = sample.read()
    try:
        return _convert(content, sample, config)
    except DataError as error:
        if isinstance(error.__cause__, MemoryError):
            raise
        raise UnfitSample(UNDECODABLE, str(error)) from error


def _convert(content: bytes, sample: SourceSample, config: ShardsConfig) -> StoredImage:
    form = _form(content, sample.name)
    decoded = decode(content, sample.name)
    notes = notes_of(content)
    image = decoded
    if sample.box is not None:
        image = crop_box(decoded, sample.box)
    else:
        image = turn(decoded, notes.orientation or sample.orientation)
    height, width = image.shape[:2]
    refuse_strip(width, height, sample.name)
    if is_verbatim(config) and image is decoded:
        return _stored(image, content, form)
    image = to_srgb(image, notes.profile)
    if is_verbatim(config):
        return _stored(image, _encode(image, LOSSLESS, config.quality, sample.name), LOSSLESS)
    if min(image.shape[:2]) > config.size:
        image = resize_shorter(image, config.size)
    content = _encode(image, config.format, config.quality, sample.name)
    return _stored(image, content, config.format)


def _form(content: bytes, name: str) -> str:
    """Return the format of a file by its first bytes, which promise no more than is decoded."""
    if other := other_format(content):
        raise UnfitSample(other, f"{name} is {other}, which is not read: {_REMEDY}")
    try:
        form = dimensions(content)[0]
    except ValueError as error:
        raise DataError(f"{name} cannot be decoded ({error}): {_REMEDY}") from error
    check_image(content, form, name)
    return form


def refuse_strip(width: int, height: int, name: str) -> None:
    """Refuse an image without a square crop that shows anything.

    Raises:
        UnfitSample: it has no pixels, or is 32 times as long as it is wide.
    """
    shorter, longer = sorted((width, height))
    if not shorter:
        raise UnfitSample(
            "bounding box outside of its image",
            f"the bounding box of {name} is outside the image: correct it",
        )
    if longer > _LONGEST_SHAPE * shorter:
        raise UnfitSample(
            "strip",
            f"{name} is a strip of {shorter} by {longer} pixels, of which a square crop "
            "shows nothing: leave it out",
        )


def _encode(image: Pixels, form: str, quality: int, name: str) -> bytes:
    try:
        return encode(image, form, quality)
    except (ValueError, OSError) as error:  # webp has 16,383 pixels a side at most
        raise DataError(f"{name} cannot be stored as {form} ({error}): leave it out") from error


def _stored(image: Pixels, content: bytes, form: str) -> StoredImage:
    height, width = image.shape[:2]
    return StoredImage(content, form, width, height)


def check_space(
    folder: Path, samples: Sequence[SourceSample], count: int, config: ShardsConfig
) -> None:
    """Refuse to begin what will not fit on the disk.

    Args:
        folder: an existing folder on the disk to write to.
        samples: some of those that are still to be stored, evenly spread.
        count: how many these are in all.
        config: how they are stored.

    Raises:
        DataError: an estimate with a tenth in reserve is larger than the free space.
    """
    needed = int(_RESERVE * _estimate(samples, config) * count / max(1, len(samples)))
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise DataError(
            f"{count:,} images need about {needed:,} bytes, but the disk of {folder} has "
            f"{free:,} free: make room or name another output="
        )


def _estimate(samples: Sequence[SourceSample], config: ShardsConfig) -> int:
    samples = [sample for sample in samples if sample.unfit is None]
    around = sum(_AROUND + sum(map(len, sample.captions)) for sample in samples)
    kept = [sample for sample in samples if is_verbatim(config) and sample.box is None]
    converted = [sample for sample in samples if not is_verbatim(config) or sample.box]
    return around + sum(sample.size for sample in kept) + _estimate_converted(converted, config)


def _estimate_converted(samples: Sequence[SourceSample], config: ShardsConfig) -> int:
    """Convert a few images that are evenly spread, and reckon with their mean."""
    tried = min(_TRIED, len(samples))
    sizes = []
    for place in range(tried):
        try:
            sizes.append(len(convert(samples[place * len(samples) // tried], config).content))
        except UnfitSample:
            continue
    return sum(sizes) * len(samples) // max(1, len(sizes))
