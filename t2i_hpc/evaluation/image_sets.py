"""How real images of any shape are brought to the size that they are compared at.

What happened to the real images before they are compared: said, because it moves a score.

A folder of image files as a set of images by number.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from t2i_hpc.common.errors import EvaluationError
from t2i_hpc.common.files import sha256_of_file
from t2i_hpc.common.seeds import generator
from t2i_hpc.data.build.sources.sample import files_below
from t2i_hpc.data.format.manifest import ORIGINAL, Manifest
from t2i_hpc.data.images import IMAGE_SUFFIXES, Pixels, center_crop, crop_and_flip, decode
from t2i_hpc.data.split import stack

_FILTERS = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
_MARGIN = (76, 64)  # shorter side before a random crop, over the resolution, as in training


@dataclass(frozen=True)
class Framing:
    """The choices.

    Attributes:
        crop: center, or random with mirroring.
        filter: bilinear, bicubic or lanczos, always with smoothing.
        seed: of random crops.
    """

    crop: str = "center"
    filter: str = "bilinear"
    seed: int = 1

    def words(self) -> str:
        """Return the choices as a protocol states them."""
        if self.crop == "center":
            return f"shorter side to the resolution by antialiased {self.filter}, center square"
        over, under = _MARGIN
        return (
            f"shorter side to {over}/{under} of the resolution by antialiased {self.filter}, "
            f"random square, half of them mirrored, seed {self.seed}"
        )

    def frame(self, image: Pixels, number: int, size: int) -> Pixels:
        """Return uint8 (size, size, 3) of real image `number`, uint8 (height, width, 3)."""
        if self.crop == "center":
            return center_crop(self._resize_shorter(image, size), size)
        over, under = _MARGIN
        larger = self._resize_shorter(image, size * over // under)
        rng = generator(self.seed, "crop of a real image", number)
        return crop_and_flip(larger, size, rng)

    def _resize_shorter(self, image: Pixels, size: int) -> Pixels:
        height, width = image.shape[:2]
        shorter = min(height, width)
        if shorter == size:
            return image
        target = (size * width // shorter, size * height // shorter)
        return np.asarray(Image.fromarray(image).resize(target, _FILTERS[self.filter]))


_LOSSY = ("jpeg", "webp")
_ADVICE = "build that split with format=original (docs/explanation/protocols.md, The real images)"


def stored_twice(manifest: Manifest, where: str, resolution: int) -> str | None:
    """Return a warning where a build compressed or scaled images that are scaled again here.

    Args:
        manifest: of the real images.
        where: names them.
        resolution: side in px at which images are compared.
    """
    how = manifest.storing
    if how.encoding == ORIGINAL:
        return None
    lossy, scaled = manifest.image_format in _LOSSY, manifest.size > resolution
    if not how.encoding:
        if not (lossy or scaled):
            return None
        return (
            f"the shards of {where} do not record how they store images: the real images may "
            f"have been compressed or scaled before, which moves a score; {_ADVICE}"
        )
    done = [f"compressed as {how.encoding.upper()} of quality {how.quality}"] * lossy
    done += [f"scaled twice (to {manifest.size} px, then to {resolution} px)"] * scaled
    if not done:
        return None
    return f"the real images of {where} were {' and '.join(done)}, which moves a score; {_ADVICE}"


def scaled_jpegs(side: int, lossy: int, where: str, resolution: int) -> str | None:
    """Return a warning where a folder's files are JPEG of the very side they are compared at.

    Photographs are larger: such files were scaled before they were compressed.

    Args:
        side: shorter side of the folder's first image in px.
        lossy: number of its JPEG files.
        where: names it.
        resolution: side in px at which images are compared.
    """
    if not lossy or side != resolution:
        return None
    return (
        f"{lossy:,} real images of {where} are JPEG files of {side} px: they were compressed after "
        "they were scaled, which moves a score; name a folder of the original files"
    )


class ImageFolder:
    """The images in a folder and its sub-folders, in the order of their names.

    Raises:
        EvaluationError: no such folder, or fewer than two images in it.
    """

    def __init__(self, folder: Path) -> None:
        if not folder.is_dir():
            raise EvaluationError(f"there is no folder {folder}: name one with image files")
        self.folder = folder
        found = (path for path in files_below(folder) if path.suffix.lower() in IMAGE_SUFFIXES)
        self.paths = sorted(found, key=lambda path: path.relative_to(folder).as_posix())
        if len(self.paths) < 2:
            kinds = ", ".join(sorted(IMAGE_SUFFIXES))
            raise EvaluationError(
                f"{folder} holds {len(self.paths)} image(s) ({kinds}): at least 2 are compared"
            )

    @property
    def count(self) -> int:
        """Number of images."""
        return len(self.paths)

    @property
    def lossy(self) -> int:
        """Number of files whose compression alone moves a score."""
        return sum(path.suffix.lower() in (".jpg", ".jpeg") for path in self.paths)

    @cached_property
    def digest(self) -> str:
        """The identity of the images: SHA-256 over all names and contents, in order."""
        digest = hashlib.sha256()
        for path in self.paths:
            name = path.relative_to(self.folder).as_posix()
            digest.update(f"{name}\0{sha256_of_file(path)}\n".encode())
        return digest.hexdigest()

    @cached_property
    def resolution(self) -> int:
        """Side of the first image; all of them must be such squares to be scored as they are."""
        return int(self.image(0).shape[0])

    def image(self, number: int) -> Pixels:
        """Decode an image: uint8 (height, width, 3).

        Raises:
            DataError: it is damaged.
        """
        path = self.paths[number]
        return decode(path.read_bytes(), str(path))

    def draw(self, numbers: Iterable[int]) -> torch.Tensor:
        """Return images as they are, uint8 (B, 3, R, R); beyond the last they begin again.

        Raises:
            EvaluationError: an image is no square of the first one's size.
        """
        return stack([self._square(number % self.count) for number in numbers])

    def _square(self, number: int) -> Pixels:
        image, side = self.image(number), self.resolution
        if image.shape[:2] != (side, side):
            height, width = image.shape[:2]
            raise EvaluationError(
                f"{self.paths[number]} has {width} x {height} px and the first image is {side} px "
                "high: generated images are scored as they are, so they must be equal squares"
            )
        return image
