"""CUB-200-2011's own layout, with the ten-line caption files of this literature beside it.

The split is by species, so that a generator is tried on birds it has never seen: `train` has
150 species (8,855 images) and `test` the other 50 (2,933 images); any other split name takes
all images. CUB's own train_test_split.txt is not used, as in all text-to-image work.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

from t2i_hpc.common.errors import DataError
from t2i_hpc.config.data import ShardsConfig
from t2i_hpc.data.build.sources.sample import (
    SourceData,
    SourceSample,
    Texts,
    folder_at,
    located,
    read_text,
    refuse,
)
from t2i_hpc.data.images import Box
from t2i_hpc.data.sidecars import Rules, lines_of

_SPLITS = Path(__file__).with_name("cub_species_split.json")


def read_cub(config: ShardsConfig) -> SourceData:
    """Read images.txt, bounding_boxes.txt, image_class_labels.txt and the caption files.

    Raises:
        DataError: missing or unreadable files, or tables that do not match.
    """
    folder = folder_at(config.images, "images", "the folder CUB_200_2011")
    texts = folder_at(config.captions, "captions", "the folder of CUB's caption files")
    boxes = read_boxes(folder)
    classes = {
        number: _class(words[0]) for number, words in _table(folder, "image_class_labels.txt", 2)
    }
    names = {
        number: name for number, name in read_names(folder).items() if _in_split(name, config.split)
    }
    if not names:
        raise DataError(f"{folder}/images.txt has no image of the split {config.split!r}")
    _check_tables(folder, names, {"bounding_boxes.txt": boxes, "image_class_labels.txt": classes})
    captions = Texts(texts, Rules())
    samples = []
    for number, name in names.items():
        key = str(Path(name).with_suffix(""))
        given, silent = captions.of(key)
        path, missing = located(name, folder / "images", f"{folder}/images.txt")
        samples.append(
            SourceSample(
                key,
                path,
                given.captions,
                classes[number],
                boxes[number],
                unfit=missing or silent,
            )
        )
    return SourceData(samples)


def read_names(folder: Path) -> dict[str, str]:
    """Return the path of each image inside ``images/``, by its number in CUB.

    Raises:
        DataError: images.txt is missing or damaged.
    """
    return {number: words[0] for number, words in _table(folder, "images.txt", 2)}


def read_boxes(folder: Path) -> dict[str, Box]:
    """Return the bounding box of each bird, by the image's number in CUB.

    Raises:
        DataError: bounding_boxes.txt is missing or damaged.
    """
    return {number: _box(words) for number, words in _table(folder, "bounding_boxes.txt", 5)}


def _table(folder: Path, name: str, columns: int) -> list[tuple[str, list[str]]]:
    """Return the rows of one of CUB's tables as (image number, other columns)."""
    rows = [line.split() for line in lines_of(read_text(folder / name, "a table of CUB"))]
    for place, words in enumerate(rows):
        if words and len(words) != columns:
            raise DataError(
                f"line {place + 1} of {folder / name} has {len(words)} words instead of "
                f"{columns}; fetch CUB-200-2011 again"
            )
    return [(words[0], words[1:]) for words in rows if words]


def _box(words: Sequence[str]) -> Box:
    try:
        left, top, width, height = (float(word) for word in words)
    except ValueError as error:
        raise DataError(
            f"bounding_boxes.txt has a box that is no number ({error}): fetch CUB-200-2011 again"
        ) from error
    return left, top, width, height


def _class(word: str) -> int:
    if not word.isdecimal():
        raise DataError(
            f"image_class_labels.txt has the class {word!r}, no number: fetch CUB-200-2011 again"
        )
    return int(word)


@cache
def _species() -> dict[str, list[str]]:
    found: dict[str, list[str]] = json.loads(_SPLITS.read_text(encoding="utf-8"))
    return found


def _in_split(name: str, split: str) -> bool:
    listed = _species().get(f"{split}_species")
    return listed is None or name.split("/", maxsplit=1)[0] in listed


def _check_tables(
    folder: Path, names: dict[str, str], tables: Mapping[str, Mapping[str, object]]
) -> None:
    for table, rows in tables.items():
        absent = [name for number, name in names.items() if number not in rows]
        refuse(absent, f"images have no row in {folder / table}", "fetch CUB-200-2011 again")
