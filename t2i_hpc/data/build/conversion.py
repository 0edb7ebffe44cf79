"""One image on its way into a shard: looked at, decoded, cut, scaled, encoded; or rejected.

This is the part of what training does to an image that is the same each time, done once, so
that training reads small files.
"""

from __future__ import annotations

from dataclasses import dataclass

from t2i_hpc.common.errors import DataError
from t2i_hpc.config.data import ShardsConfig
from t2i_hpc.data.build.sources import SourceSample
from t2i_hpc.data.format.manifest import ORIGINAL, Storing
from t2i_hpc.data.images import (
    RESAMPLING,
    Pixels,
    check_image,
    crop_box,
    decode,
    dimensions,
    encode,
    notes_of,
    other_format,
    resize_shorter,
    to_srgb,
    turn,
)

LOSSLESS = "png"
_LONGEST_SHAPE = 32  # longer side over shorter side
_REMEDY = "replace it by a whole JPEG, PNG or WebP image or leave it out"


UNDECODABLE = "image that cannot be decoded"


class Rejected(Exception):  # noqa: N818 - it is no error: the build goes on without the image
    """An image that cannot be used: what it is counted as, and the reason."""

    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(reason)
        self.kind, self.reason = kind, reason


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
    """Return what the manifest says of the way from source to shard."""
    if is_verbatim(config):
        return Storing(ORIGINAL, 0, "none")
    quality = 0 if config.format == LOSSLESS else config.quality
    return Storing(config.format, quality, RESAMPLING)


def convert(sample: SourceSample, config: ShardsConfig) -> StoredImage:
    """Return an image as it is to be stored.

    Raises:
        Rejected: the sample cannot be used: another try would say the same.
        DataError: the file cannot be read, which another try may be able to.
    """
    if sample.unfit is not None:
        raise Rejected(sample.unfit.kind, sample.unfit.reason)
    content = sample.read()
    try:
        return _convert(content, sample, config)
    except DataError as error:
        if isinstance(error.__cause__, MemoryError):
            raise
        raise Rejected(UNDECODABLE, str(error)) from error


def _convert(content: bytes, sample: SourceSample, config: ShardsConfig) -> StoredImage:
    form = _form(content, sample.name)
    decoded = decode(content, sample.name)
    note = notes_of(content)
    image = decoded
    if sample.box is not None:
        image = crop_box(decoded, sample.box)
    else:
        image = turn(decoded, note.orientation or sample.orientation)
    _refuse_strip(image, sample.name)
    if is_verbatim(config) and image is decoded:
        return _stored(image, content, form)
    image = to_srgb(image, note.profile)
    if is_verbatim(config):
        return _stored(image, _encode(image, LOSSLESS, config.quality, sample.name), LOSSLESS)
    if min(image.shape[:2]) > config.size:
        image = resize_shorter(image, config.size)
    content = _encode(image, config.format, config.quality, sample.name)
    return _stored(image, content, config.format)


def _form(content: bytes, name: str) -> str:
    """Return the format of a file by its first bytes, which promise no more than is decoded."""
    if other := other_format(content):
        raise Rejected(other, f"{name} is {other}, which is not read: {_REMEDY}")
    try:
        form = dimensions(content)[0]
    except ValueError as error:
        raise DataError(f"{name} cannot be decoded ({error}): {_REMEDY}") from error
    check_image(content, form, name)
    return form


def _refuse_strip(image: Pixels, name: str) -> None:
    shorter, longer = sorted(image.shape[:2])
    if not shorter:
        raise Rejected(
            "bounding box outside of its image",
            f"the bounding box of {name} lies outside the image: correct it",
        )
    if longer > _LONGEST_SHAPE * shorter:
        raise Rejected(
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
