"""Caption sensitivity: whether words steer a generator's images, measured on its sample grids.

Rows of a grid are captions, columns noise, so that its images differ by one or by the other alone.
The sensitivity is the root mean square by which a pixel changes with the caption, over that by
which it changes with the noise: near 0 where every row shows the same images.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from t2i_hpc.common.files import write_json

if TYPE_CHECKING:  # the report of a run reads its values and needs no torch
    from torch import Tensor

FILE = "caption_sensitivity.json"  # beside the grids
NEAR_ZERO = 0.1
_GRIDS = 3  # in a row that say so, before a warning
ADVICE = (
    "the words of a caption hardly move the picture, as against the noise: compare the rows of a "
    "grid. Encoders that find their captions (top-1 of t2i_hpc.pretrain far above chance) in "
    "system.text_encoder.weights, a larger system.damsm.weight, or more training help"
)


def caption_sensitivity(images: Tensor, columns: int) -> float | None:
    """Return how far captions move images, over how far noise does.

    Args:
        images: (rows · columns, 3, h, w) of any scale, the images of one caption after another.
        columns: noise vectors of a caption, the same for each.

    Returns:
        √(variance over captions / variance over noise), means over pixels; None where a grid has
        one row or column, where noise moves nothing, or where values are not finite.
    """
    grid = images.unflatten(0, (-1, columns)).double()
    if min(grid.shape[:2]) < 2:
        return None
    captions, noise = (float(grid.var(dim).mean()) for dim in (0, 1))
    ratio = captions / noise if noise > 0 else float("nan")
    return ratio**0.5 if 0 <= ratio < float("inf") else None


class SensitivityRecord:
    """The sensitivities of a run's grids by images seen, in a file beside them."""

    def __init__(self, run: Path) -> None:
        self._path = run / "samples" / FILE
        self._values = read_sensitivities(run)

    def add(self, images_seen: int, value: float) -> str:
        """Keep a grid's value; return the line to say of it.

        The line warns where this grid and the two before it are near zero; what an earlier
        session measured later than this grid does not count.
        """
        values = self._values = dict(sorted({**self._values, images_seen: value}.items()))
        write_json(self._path, {f"{images:010d}": known for images, known in values.items()})
        said = f"after {images_seen:,} images: caption sensitivity {value:.2f}"
        seen = [known for images, known in values.items() if images <= images_seen]
        return f"{said}: warning: {ADVICE}" if stays_near_zero(seen) else said


def stays_near_zero(values: list[float]) -> bool:
    """Whether the newest sensitivities of a run, oldest first, are all near zero.

    The first grid is of a generator that has seen nothing.
    """
    newest = values[1:][-_GRIDS:]
    return len(newest) == _GRIDS and max(newest) < NEAR_ZERO


def read_sensitivities(run: Path) -> dict[int, float]:
    """Return a run's caption sensitivities by images seen, in that order; nothing without any."""
    path = run / "samples" / FILE
    if not path.is_file():
        return {}
    found: dict[str, float] = json.loads(path.read_text(encoding="utf-8"))
    return dict(sorted((int(images), value) for images, value in found.items()))
