"""Image files and their pixels: decoding, encoding, scaling, crops.

Decoders differ in single bits, so training and evaluation use the same one: libjpeg-turbo for
JPEG, Pillow for PNG and WebP. What may be decoded is an allow-list with a limit of pixels: a
file is known by its first bytes, never by its name.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import simplejpeg
from PIL import Image, ImageCms, ImageOps

from t2i_hpc.common.errors import DataError
from t2i_hpc.data.image_headers import MAX_PIXELS, mended

Pixels = npt.NDArray[np.uint8]
Box = tuple[float, float, float, float]
SUFFIXES = {"jpeg": "jpg", "png": "png", "webp": "webp"}
IMAGE_FORMATS_OF_SUFFIX = {
    ".jpeg": "jpeg",
    **{f".{suffix}": form for form, suffix in SUFFIXES.items()},
}
IMAGE_SUFFIXES = tuple(IMAGE_FORMATS_OF_SUFFIX)
RESAMPLING = "antialiased bilinear"  # of resize_shorter
_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK")
# Stuffing before the end marker, which some cameras write.
_STUFFING = "extraneous bytes before marker 0xd9"
# Only the first warning of a decoder is reported, which cannot say whether damage follows: these
# are mended in a copy of the header, which is then decoded as strictly as any file.
_ODD_HEADERS = ("Invalid SOS parameters", "unknown JFIF revision", "Unknown Adobe color transform")


def decode(content: bytes, name: str = "image", buffer: PixelBuffer | None = None) -> Pixels:
    """Decode a JPEG, PNG or WebP file to RGB: uint8 (height, width, 3).

    Transparent pixels are laid on white; of an animation the first frame is taken.

    Args:
        content: the file.
        name: what it is called in messages.
        buffer: where the pixels of a JPEG may be kept, until the next image is decoded there.

    Raises:
        DataError: damaged, truncated, too large, or no format that is offered.
    """
    try:
        if content.startswith(b"\xff\xd8"):
            return _decode_jpeg(content, name, buffer or PixelBuffer())
        return _decode_with_pillow(content, name)
    except DataError:
        raise
    except Exception as error:  # decoders raise anything on damaged bytes
        raise DataError(
            f"{name} cannot be decoded ({_reason(error)}); replace it by a whole JPEG, PNG or "
            "WebP image or leave it out"
        ) from error


def encode(image: Pixels, form: str, quality: int) -> bytes:
    """Encode uint8 (height, width, 3) as jpeg (4:4:4), png (lossless) or webp.

    The same image gives the same bytes each time.
    """
    if form == "jpeg":
        return bytes(simplejpeg.encode_jpeg(image, quality, "RGB", "444"))
    options: dict[str, dict[str, Any]] = {
        "png": {"optimize": True},
        "webp": {"quality": quality, "method": 6},
    }
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, form.upper(), **options[form])
    return stream.getvalue()


def _decode_jpeg(content: bytes, name: str, buffer: PixelBuffer) -> Pixels:
    height, width, colorspace, _ = simplejpeg.decode_jpeg_header(content, strict=False)
    _check_size(width, height, name)
    if colorspace in ("CMYK", "YCCK"):
        return _decode_with_pillow(content, name)
    memory = buffer.of(3 * height * width)
    try:
        return _strictly(content, memory)
    except ValueError as error:
        if not any(odd in str(error) for odd in _ODD_HEADERS):
            raise
        return _strictly(mended(content), memory)


def _strictly(content: bytes, memory: Pixels) -> Pixels:
    """Decode a JPEG whose decoder has nothing to warn of but stuffing at its end."""
    try:
        return np.asarray(simplejpeg.decode_jpeg(content, "RGB", buffer=memory))
    except ValueError as error:
        if _STUFFING not in str(error):
            raise
        return np.asarray(simplejpeg.decode_jpeg(content, "RGB", strict=False))


def _decode_with_pillow(content: bytes, name: str) -> Pixels:
    with Image.open(io.BytesIO(content), formats=("JPEG", "PNG", "WEBP")) as image:
        _check_size(image.width, image.height, name)
        if image.mode not in _MODES:
            raise DataError(
                f"{name} has pixels of the kind {image.mode!r}, which is not offered; convert "
                "it to 8-bit RGB"
            )
        if image.has_transparency_data:
            paper = Image.new("RGBA", image.size, "white")
            return np.asarray(Image.alpha_composite(paper, image.convert("RGBA")).convert("RGB"))
        return np.asarray(image.convert("RGB"))


def _check_size(width: int, height: int, name: str) -> None:
    if width * height > MAX_PIXELS:
        raise DataError(
            f"{name} has {width} by {height} pixels, more than the {MAX_PIXELS:,} that are "
            "decoded; scale it down or leave it out"
        )


def _reason(error: Exception) -> str:
    return " ".join((str(error) or type(error).__name__).split())


class PixelBuffer:
    """Memory for one decoded image after the other, which spares asking the system each time."""

    def __init__(self) -> None:
        self._memory = np.empty(0, dtype=np.uint8)

    def of(self, count: int) -> Pixels:
        """Return the memory, of at least `count` bytes."""
        if len(self._memory) < count:
            self._memory = np.empty(count, dtype=np.uint8)
        return self._memory


# --- scaling and crops


def resize_shorter(image: Pixels, size: int) -> Pixels:
    """Scale so that the shorter side is `size` pixels: bilinear with antialiasing (Pillow).

    The longer side is rounded down, as torchvision's Resize does.
    """
    height, width = image.shape[:2]
    if min(height, width) == size:
        return image
    shorter = min(height, width)
    target = (size * width // shorter, size * height // shorter)
    return np.asarray(Image.fromarray(image).resize(target, Image.Resampling.BILINEAR))


def center_crop(image: Pixels, size: int) -> Pixels:
    """Cut the middle `size` × `size` pixels."""
    height, width = image.shape[:2]
    top, left = (height - size) // 2, (width - size) // 2
    return image[top : top + size, left : left + size]


def crop_and_flip(image: Pixels, size: int, rng: np.random.Generator) -> Pixels:
    """Cut a random `size` × `size` window and mirror half of the images.

    The same numbers are drawn whatever the image's size is.
    """
    down, across, mirror = rng.random(3)
    cut = window(image, size, down, across)
    return cut[:, ::-1] if mirror < 0.5 else cut


def window(image: Pixels, size: int, down: float, across: float) -> Pixels:
    """Cut `size` × `size` pixels; `down` and `across`, from [0, 1), say where."""
    height, width = image.shape[:2]
    top, left = int(down * (height - size + 1)), int(across * (width - size + 1))
    return image[top : top + size, left : left + size]


def crop_box(image: Pixels, box: Box) -> Pixels:
    """Cut the surroundings of a bird: a square of 1.5 × the box's longer side, inside the image.

    Args:
        image: uint8 (height, width, 3).
        box: left, top, width, height in pixels; fractions are cut off (StackGAN's rule).
    """
    height, width = image.shape[:2]
    x, y, box_width, box_height = (int(value) for value in box)
    reach = int(max(box_width, box_height) * 0.75)
    center_x, center_y = (2 * x + box_width) // 2, (2 * y + box_height) // 2
    top, bottom = max(0, center_y - reach), min(height, center_y + reach)
    left, right = max(0, center_x - reach), min(width, center_x + reach)
    return image[top:bottom, left:right]


# --- orientation and colors


@dataclass(frozen=True)
class Notes:
    """What an image file holds about its pixels.

    Attributes:
        orientation: EXIF's, 1 to 8; 0 where there is none or another number.
        profile: ICC profile of an RGB image, or b"".
    """

    orientation: int = 0
    profile: bytes = b""


def notes_of(content: bytes) -> Notes:
    """Read an image file's notes; those that cannot be read are as if there were none."""
    try:
        with Image.open(io.BytesIO(content)) as opened:
            profile = opened.info.get("icc_profile") or b""
            rgb = opened.mode in ("RGB", "RGBA", "P", "PA")
            orientation = opened.getexif().get(0x0112, 0)
    except Exception:
        return Notes()
    known = isinstance(orientation, int) and orientation in range(1, 9)
    return Notes(orientation if known else 0, profile if rgb else b"")


def turn(image: Pixels, orientation: int) -> Pixels:
    """Turn an image as EXIF's orientation says; numbers other than 2 to 8 change nothing."""
    if orientation not in range(2, 9):
        return image
    turned = Image.fromarray(image)
    turned.getexif()[0x0112] = orientation
    return np.asarray(ImageOps.exif_transpose(turned))


def to_srgb(image: Pixels, profile: bytes) -> Pixels:
    """Convert an image from the colors of an ICC profile, such as Display P3, to sRGB.

    Args:
        image: uint8 (height, width, 3).
        profile: b"", or what cannot be read or used, leaves the image as it is.
    """
    if not profile:
        return image
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if "sRGB" in ImageCms.getProfileDescription(source):
            return image
        converted = ImageCms.profileToProfile(Image.fromarray(image), source, _srgb())
    except (OSError, ImageCms.PyCMSError):
        return image
    return image if converted is None else np.asarray(converted)


@cache
def _srgb() -> ImageCms.ImageCmsProfile:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
