"""The metadata pickles that AttnGAN, DM-GAN, SSA-GAN and their kin hand around.

``captions.pickle`` is a list of training captions, test captions, words by number and numbers
by word; a caption is a list of word numbers, and image i has captions i·K … i·K+K-1. Beside it
``train/`` and ``test/`` hold the images' keys (``filenames.pickle``) and perhaps their classes
(``class_info.pickle``), and ``text/`` perhaps the captions as sentences. Encoders that were
published fit these words in this order, so the vocabulary of such a split is that of the
pickle.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from t2i_hpc.common.errors import DataError
from t2i_hpc.config.data import ShardsConfig
from t2i_hpc.data.captions import PADDING, PADDING_WORD
from t2i_hpc.data.images import Box
from t2i_hpc.data.restricted_pickle import load_data
from t2i_hpc.data.sources.cub import read_boxes, read_names
from t2i_hpc.data.sources.sample import (
    SourceSample,
    folder_at,
    read_captions_beside,
    refuse,
    refuse_missing_images,
    refuse_outside,
)

SPLITS = ("train", "test")
_HOLDS = "captions and words of this literature"
_Captions = list[list[int]]


@dataclass(frozen=True)
class Published:
    """What a captions.pickle holds: the captions of each split and the words, all by number."""

    captions: dict[str, _Captions]
    words: tuple[str, ...]


def read_pickles(config: ShardsConfig) -> Sequence[SourceSample]:
    """Read the pickles of one split and find its images; CUB's birds get their boxes.

    Raises:
        DataError: missing or unreadable files, or ones that do not belong together.
    """
    images = folder_at(config.images, "images", "the folder that holds <key>.jpg")
    if config.split not in SPLITS:
        raise DataError(f"split={config.split} is not in the pickles: they have train and test")
    path = Path(config.captions)
    published, folder = read_published(path), path.parent
    keys = _keys(folder / config.split / "filenames.pickle")
    classes = _classes(folder / config.split / "class_info.pickle", len(keys))
    paths = {key: images / f"{key}.jpg" for key in keys}
    refuse_missing_images(paths, str(images))
    captions = _sentences(published, config.split, keys, path)
    boxes = _boxes(images.parent, keys)
    return [
        SourceSample(key, paths[key], captions[key], classes[place], boxes.get(key))
        for place, key in enumerate(keys)
    ]


def read_published(path: Path) -> Published:
    """Read a captions.pickle; the same file is read once.

    Raises:
        DataError: it is missing, unreadable, or not what it should be.
    """
    if not path.is_file():
        raise DataError(f"there is no file {str(path)!r}: captions= must name a captions.pickle")
    state = path.stat()
    return _published(path, state.st_size, state.st_mtime_ns)


@lru_cache(maxsize=1)
def _published(path: Path, size: int, _: int) -> Published:
    content = load_data(path, _HOLDS)
    if not isinstance(content, (list, tuple)) or len(content) != 4:
        raise _unfit(path, "it is no list of four: train captions, test captions, words, numbers")
    words = _words(content[2], path)
    captions = {
        split: _checked_captions(content[place], len(words), size, path)
        for place, split in enumerate(SPLITS)
    }
    return Published(captions, words)


def _unfit(path: Path, reason: str) -> DataError:
    return DataError(f"{path} does not hold {_HOLDS}: {reason}; fetch the file again")


def _words(found: Any, path: Path) -> tuple[str, ...]:
    if not isinstance(found, dict) or found.keys() != set(range(len(found))):
        raise _unfit(path, "its words are not numbered from 0 on")
    words = tuple(found[number] for number in range(len(found)))
    plain = all(isinstance(word, str) and word.isprintable() for word in words)
    if not plain or len(set(words)) != len(words):
        raise _unfit(path, "its words are not different, printable strings")
    if words[:1] != (PADDING_WORD,):
        raise _unfit(path, f"its word 0 is not {PADDING_WORD!r}")
    return words


def _checked_captions(found: Any, words: int, size: int, path: Path) -> _Captions:
    """Check types and numbers; shared lists could make few bytes look like endless captions."""
    if not isinstance(found, (list, tuple)):
        raise _unfit(path, "its captions are no list")
    length = 0
    for caption in found:
        if not isinstance(caption, (list, tuple)):
            raise _unfit(path, "one of its captions is no list of word numbers")
        length += len(caption)
        if length > size:
            raise _unfit(path, "its captions are longer than the file")
        if not all(type(number) is int and 0 <= number < words for number in caption):
            raise _unfit(path, "one of its captions has a number that is no word's")
    return [list(caption) for caption in found]


def _keys(path: Path) -> list[str]:
    found = load_data(path, "the keys of a split's images")
    if not isinstance(found, (list, tuple)) or not found:
        raise DataError(f"{path} is no list of keys: fetch the file again")
    keys = [key.decode("latin-1") if isinstance(key, bytes) else key for key in found]
    if not all(isinstance(key, str) and key and key.isprintable() for key in keys):
        raise DataError(f"{path} has keys that are no printable strings: fetch the file again")
    if len(set(keys)) != len(keys):
        raise DataError(f"{path} has keys more than once: fetch the file again")
    for key in keys:
        refuse_outside(key, str(path))
    return keys


def _classes(path: Path, count: int) -> list[int]:
    """Return the class of each image; running numbers where there are none, as for COCO."""
    if not path.exists():
        return list(range(count))
    found = load_data(path, "the classes of a split's images")
    if not isinstance(found, (list, tuple)) or not all(type(number) is int for number in found):
        raise DataError(f"{path} is no list of whole numbers: fetch the file again")
    if len(found) != count:
        raise DataError(
            f"{path} has {len(found):,} classes for {count:,} images: it is of another data set"
        )
    return list(found)


def _sentences(
    published: Published, split: str, keys: Sequence[str], path: Path
) -> dict[str, tuple[str, ...]]:
    """Return the captions by key: those of ``text/`` if it is there, else words in a row."""
    captions = published.captions[split]
    each, rest = divmod(len(captions), len(keys))
    if rest or not each:
        raise _unfit(path, f"{len(captions):,} captions cannot belong to {len(keys):,} images")
    texts = path.parent / "text"
    if texts.is_dir():
        remedy = f"complete {texts}, or move it away to use the words of the pickle"
        found = read_captions_beside(texts, keys, remedy)
        return {key: lines[:each] for key, lines in found.items()}
    return {
        key: _joined(captions[place * each : (place + 1) * each], key, published.words, path)
        for place, key in enumerate(keys)
    }


def _joined(captions: _Captions, key: str, words: Sequence[str], path: Path) -> tuple[str, ...]:
    rows = [[words[number] for number in caption if number != PADDING] for caption in captions]
    refuse([] if any(rows) else [key], f"images of {path} have no words", "fetch the file again")
    return tuple(" ".join(row) for row in rows if row)


def _boxes(folder: Path, keys: Sequence[str]) -> dict[str, Box]:
    """Return the boxes of CUB's birds by key, if `folder` is CUB_200_2011; else none."""
    if not all((folder / name).is_file() for name in ("images.txt", "bounding_boxes.txt")):
        return {}
    boxes = read_boxes(folder)
    found = {
        str(Path(name).with_suffix("")): boxes[number]
        for number, name in read_names(folder).items()
        if number in boxes
    }
    refuse(
        [key for key in keys if key not in found],
        f"images have no box in {folder}",
        "images= must name the folder images of CUB_200_2011",
    )
    return found
