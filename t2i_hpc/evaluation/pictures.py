"""Pictures beside scores: generated images with the nearest training image, images of one caption.

They are files of the run, by the number of its training images, and a run's page shows them. Beside
each picture a ``.json`` of the same name says which images it shows and what was measured.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from torch import Tensor

from t2i_hpc.common.files import write_json
from t2i_hpc.evaluation.memorization import Memorization
from t2i_hpc.evaluation.scores import DIVERSITY, NEAREST
from t2i_hpc.sampling.grids import labelled_grid, save_picture
from t2i_hpc.sampling.image_files import ImagesOf

_PAIRS, _COLUMNS = 12, 3
_CAPTIONS, _MOST = 6, 8
_SMALLEST = 96  # px; smaller images are enlarged by a whole number


@dataclass(frozen=True)
class Made:
    """Generated images of one checkpoint.

    Attributes:
        checkpoint: SHA-256 of its weights.
        images_seen: images that it was trained on.
        images_of: gives images by number, uint8 (B, 3, R, R).
        caption_of: gives the caption of an image, "" where there is none.
    """

    checkpoint: str
    images_seen: int
    images_of: ImagesOf
    caption_of: Callable[[int], str]

    def images(self, first: int, count: int = 1) -> list[Tensor]:
        """Return images, uint8 (3, R, R) each, on the CPU.

        They are made without the other images of their batch, so their last bits may be others.
        """
        return list(self.images_of(range(first, first + count)).cpu())


def save_nearest(
    folder: Path, made: Made, protocol: str, found: Memorization, training_of: ImagesOf
) -> None:
    """Write the generated images nearest to a training image, each beside that one.

    Args:
        folder: of the run; the picture is ``nearest/IMAGES.png`` in it.
        made: the generated images.
        protocol: hash of what they were compared with.
        found: the nearest training images.
        training_of: gives training images by number, uint8 (B, 3, R, R).
    """
    path = _path(folder, NEAREST, made)
    facts: dict[str, Any] = {"protocol": protocol, "checkpoint": made.checkpoint}
    if _is_there(path, facts):
        return
    numbers = found.closest(_PAIRS)
    pairs = [
        {
            "image": number,
            "training_image": int(found.nearest[number]),
            "distance": float(found.apart[number]),
            "memorized": bool(found.apart[number] <= found.threshold),
            "caption": made.caption_of(number),
        }
        for number in numbers
    ]
    cells = []
    for number in numbers:
        other = int(found.nearest[number])
        cells += [*made.images(number), *training_of(range(other, other + 1)).cpu()]
    labels = []
    for pair in pairs:
        mark = " *" if pair["memorized"] else ""
        labels += ["generated", f"training, {pair['distance']:.4g}{mark}"]
    across = 2 * _COLUMNS
    _write(path, _in_rows(cells, across), _in_rows(labels, across))
    write_json(path.with_suffix(".json"), {**facts, "threshold": found.threshold, "pairs": pairs})


def save_diversity(
    folder: Path,
    made: Made,
    protocol: str,
    diversities: npt.NDArray[np.float64],
    images_per_caption: int,
) -> None:
    """Write images of captions from the least to the most diverse one, a row each.

    Args:
        folder: of the run; the picture is ``diversity/IMAGES.png`` in it.
        made: the generated images.
        protocol: hash of what made them.
        diversities: of the captions, float64 (captions,).
        images_per_caption: images of each.
    """
    path = _path(folder, DIVERSITY, made)
    facts: dict[str, Any] = {"protocol": protocol, "checkpoint": made.checkpoint}
    if _is_there(path, facts):
        return
    order = np.argsort(diversities, kind="stable")
    count = min(_CAPTIONS, len(order))
    chosen = [int(order[round(p)]) for p in np.linspace(0, len(order) - 1, count)]
    rows, captions = [], []
    for place in chosen:
        first = place * images_per_caption
        rows.append(made.images(first, min(images_per_caption, _MOST)))
        captions.append(f"{made.caption_of(first)} ({diversities[place]:.3g})")
    _write(path, rows, [[] for _ in rows], captions)
    shown = [
        {"caption": made.caption_of(place * images_per_caption), "diversity": diversities[place]}
        for place in chosen
    ]
    write_json(path.with_suffix(".json"), {**facts, "rows": shown})


def _path(folder: Path, kind: str, made: Made) -> Path:
    return folder / kind / f"{made.images_seen:010d}.png"


def _is_there(path: Path, facts: Mapping[str, Any]) -> bool:
    """Whether the picture is there and shows just these images."""
    try:
        known = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return path.is_file() and all(known.get(name) == value for name, value in facts.items())


def _write(
    path: Path,
    rows: Sequence[Sequence[Tensor]],
    labels: Sequence[Sequence[str]],
    captions: Sequence[str] | None = None,
) -> None:
    scale = -(-_SMALLEST // rows[0][0].shape[2])
    picture: Image.Image = labelled_grid(rows, labels, captions, scale)
    save_picture(picture, path)


def _in_rows(cells: Sequence[Any], across: int) -> list[list[Any]]:
    return [list(cells[start : start + across]) for start in range(0, len(cells), across)]
