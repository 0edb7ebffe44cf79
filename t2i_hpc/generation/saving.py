"""Generated images on the disk, for those who ask for them; scores never need them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from t2i_hpc.metrics.evaluate import Draw


def saving(draw: Draw, form: str, folder: Path, images: int) -> Draw:
    """Return `draw` such that it also writes the images that count.

    Args:
        draw: gives images, uint8 (B, 3, R, R).
        form: png (one file an image, by its number) or npz (one a batch, by its first number).
        folder: where to.
        images: number of images that count.
    """

    def draw_and_write(numbers: range) -> Tensor:
        drawn = draw(numbers)
        counted = drawn[: max(0, images - numbers.start)].cpu().numpy().transpose(0, 2, 3, 1)
        folder.mkdir(parents=True, exist_ok=True)
        if form == "npz":
            np.savez_compressed(folder / f"{numbers.start:09d}.npz", images=counted)
        else:
            for number, image in zip(numbers, counted, strict=False):
                Image.fromarray(image).save(folder / f"{number:09d}.png")
        return drawn

    return draw_and_write
