"""A folder of image files as a set of images by number."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path

import torch

from t2i_hpc.common.errors import EvaluationError
from t2i_hpc.common.files import sha256_of_file
from t2i_hpc.data.images import Pixels, decode
from t2i_hpc.data.sources.sample import IMAGE_SUFFIXES, files_below
from t2i_hpc.data.split import stack


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
