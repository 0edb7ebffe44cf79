"""How real images of any shape are brought to the size that they are compared at."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

from t2i_hpc.common.seeds import generator
from t2i_hpc.data.images import Pixels, centre_crop, crop_and_flip

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
        crop: centre, or random with mirroring.
        filter: bilinear, bicubic or lanczos, always with smoothing.
        seed: of random crops.
    """

    crop: str = "centre"
    filter: str = "bilinear"
    seed: int = 1

    def words(self) -> str:
        """Return the choices as a protocol states them."""
        if self.crop == "centre":
            return f"shorter side to the resolution by antialiased {self.filter}, centre square"
        over, under = _MARGIN
        return (
            f"shorter side to {over}/{under} of the resolution by antialiased {self.filter}, "
            f"random square, half of them mirrored, seed {self.seed}"
        )

    def frame(self, image: Pixels, number: int, size: int) -> Pixels:
        """Return uint8 (size, size, 3) of real image `number`, uint8 (height, width, 3)."""
        if self.crop == "centre":
            return centre_crop(self._resize_shorter(image, size), size)
        over, under = _MARGIN
        larger = self._resize_shorter(image, size * over // under)
        rng = generator(self.seed, "crop of a real image", number)
        return crop_and_flip(larger, size, rng, flip=True)

    def _resize_shorter(self, image: Pixels, size: int) -> Pixels:
        height, width = image.shape[:2]
        shorter = min(height, width)
        if shorter == size:
            return image
        target = (size * width // shorter, size * height // shorter)
        return np.asarray(Image.fromarray(image).resize(target, _FILTERS[self.filter]))
