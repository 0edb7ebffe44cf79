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
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from t2i_hpc.common.errors import DataError
from t2i_hpc.config.data import ShardsConfig
from t2i_hpc.data.build.sources.cub import read_boxes, read_names
from t2i_hpc.data.build.sources.sample import (
    SourceData,
    SourceSample,
    Texts,
    Unfit,
    folder_at,
    read_listed,
    refuse,
)
from t2i_hpc.data.captions import PADDING, PADDING_WORD
from t2i_hpc.data.images import Box
from t2i_hpc.data.restricted_pickle import load_data
from t2i_hpc.data.sidecars import NO_CAPTION, Rules

SPLITS = ("train", "test")
_HOLDS = "captions and words of this literature"
_Captions = list[list[int]]


@dataclass(frozen=True)
class Published:
    """What a captions.pickle holds: the captions of each split and the words, all by number."""

    captions: dict[str, _Captions]
    words: tuple[str, ...]


def read_pickles(config: ShardsConfig) -> SourceData:
    """Read the pickles of one split and find its images; CUB's birds get their boxes.

    ``captions=`` names captions.pickle, or the folder of texts where there is none.

    Raises:
        DataError: missing or unreadable files, or ones that do not belong together.
    """
    images = folder_at(config.images, "images", "the folder that holds <key>.jpg")
    path = Path(config.captions or "captions.pickle")
    published = None if path.is_dir() else read_published(path)
    root = path.parent if published else folder_of_lists(path)
    splits = list(SPLITS) if published else listed_splits(root)
    if config.split not in splits:
        known = ", ".join(splits) or "none"
        raise DataError(f"split={config.split} is not in the pickles of {root}: {known}")
    keys = keys_of_split(root, config.split)
    classes = _classes(root / config.split / "class_info.pickle", len(keys))
    texts = path if path.is_dir() else path.parent / "text"
    samples = read_listed(images, Texts(texts, Rules()), keys)
    if published:
        samples = _with_published(samples, published, config.split, texts, path)
    boxes = _boxes(images.parent, keys)
    return SourceData(
        [
            replace(sample, class_id=number, box=boxes.get(sample.key))
            for sample, number in zip(samples, classes, strict=True)
        ]
    )


def folder_of_lists(texts: Path) -> Path:
    """Return the folder with the lists of a split's images: that of ``text/``, or one above.

    Multi-Modal-CelebA-HQ has its captions in ``text/celeba-caption`` and its lists beside ``text``.
    """
    return next(
        (one for one in (texts.parent, texts.parent.parent) if listed_splits(one)), texts.parent
    )


def listed_splits(folder: Path) -> list[str]:
    """Return the splits of this literature's layout: folders that hold a filenames.pickle."""
    return sorted(path.parent.name for path in folder.glob("*/filenames.pickle"))


def keys_of_split(folder: Path, split: str) -> list[str]:
    """Return the names of a split's images, without suffixes, in its order.

    Raises:
        DataError: the list is missing or damaged.
    """
    return _keys(folder / split / "filenames.pickle")


def read_published(path: Path) -> Published:
    """Read a captions.pickle; the same file is read once.

    Raises:
        DataError: it is missing, unreadable, or not what it should be.
    """
    if not path.is_file():
        raise DataError(
            f"there is no file {str(path)!r}: captions= must name a captions.pickle, or the folder "
            "of texts (text/) where there is none"
        )
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
    outside = [key for key in keys if key.startswith("/") or ".." in Path(key).parts]
    refuse(outside, f"keys of {path} lead outside the folder of images", "fetch the file again")
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


def _with_published(
    samples: Sequence[SourceSample], published: Published, split: str, texts: Path, path: Path
) -> list[SourceSample]:
    """Return samples with as many captions each as the pickle has.

    They are those of ``text/`` if it is there, else the pickle's words in a row.
    """
    captions = published.captions[split]
    each, rest = divmod(len(captions), len(samples))
    if rest or not each:
        raise _unfit(path, f"{len(captions):,} captions cannot belong to {len(samples):,} images")
    if texts.is_dir():
        return [replace(sample, captions=sample.captions[:each]) for sample in samples]
    return [
        _joined(sample, captions[place * each : (place + 1) * each], published.words, path)
        for place, sample in enumerate(samples)
    ]


def _joined(
    sample: SourceSample, captions: _Captions, words: Sequence[str], path: Path
) -> SourceSample:
    rows = [[words[number] for number in caption if number != PADDING] for caption in captions]
    found = tuple(" ".join(row) for row in rows if row)
    unfit = sample.unfit if sample.unfit and sample.unfit.kind != NO_CAPTION else None
    if not found and unfit is None:
        unfit = Unfit(NO_CAPTION, f"{path} has no words for {sample.key}")
    return replace(sample, captions=found, unfit=unfit)


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
