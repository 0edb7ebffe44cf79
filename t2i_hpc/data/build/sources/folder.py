"""A folder of images with captions: in text files beside them or apart, or in one file.

- ``a.jpg`` and ``a.txt``, one caption a line, in the same folder or in the folder ``captions=``;
- one file that describes all images: ``metadata.jsonl``, ``.csv``, ``.tsv`` or ``.parquet`` in
  the folder, or any captions file that ``captions=`` names (see ``captions_files.py``)::

    {"file_name": "a.jpg", "text": "a red circle"}
    {"file_name": "b.png", "captions": ["a blue square", "a square, blue"], "class": 7}

With such a file the images that it names are taken, in its order, and others are left alone.
Where a folder of texts is beside ``train/filenames.pickle``, as in this literature, that list
says which images a split has; so it does for ``text/celeba-caption`` of Multi-Modal-CelebA-HQ.
img2dataset's ``files`` are such folders as well; the tables beside them are left alone.

Each partition reads such a file, or all texts of a folder, whole: which samples there are, and
whose class is the largest, is said nowhere else. It keeps its own samples alone while it makes
shards. The same holds for ``coco``, ``cub``, ``flowers`` and ``pickles``.

COCO's own layout, and the files of other data sets in its form: images and one captions JSON.

The captions file decides which images are taken, in its order; files that it does not name
are left alone, so that a part of the captions can be used with the whole folder. Karpathy's
``dataset_coco.json`` names the split of each image as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from t2i_hpc.common.errors import DataError
from t2i_hpc.config.data import ShardsConfig
from t2i_hpc.data.build.sources.captions_files import ALL, read_rows, rows_of_split, samples_of
from t2i_hpc.data.build.sources.pickles import folder_of_lists, keys_of_split, listed_splits
from t2i_hpc.data.build.sources.sample import (
    SourceData,
    SourceSample,
    Texts,
    folder_at,
    numbered,
    read_beside,
    read_listed,
)
from t2i_hpc.data.images import IMAGE_SUFFIXES
from t2i_hpc.data.sidecars import Rules, files_below

METADATA = ("metadata.jsonl", "metadata.csv", "metadata.tsv", "metadata.parquet")


def read_folder(config: ShardsConfig) -> SourceData:
    """Read a folder of images and the captions beside it.

    Raises:
        DataError: no images, or captions that cannot be read.
    """
    folder = folder_at(config.images, "images", "a folder of images")
    named = Path(config.captions) if config.captions else _metadata(folder)
    if named is None or named.is_dir():
        texts = Texts(named or folder, Rules(caption_key=config.caption_key))
        return SourceData(numbered(_with_texts(folder, texts, config.split)))
    return read_captions_file(folder, named, config, keys_have_suffixes=True)


def read_captions_file(
    folder: Path, path: Path, config: ShardsConfig, *, keys_have_suffixes: bool
) -> SourceData:
    """Read the images of a folder that a captions file names.

    Raises:
        DataError: the file cannot be read, or has no such split.
    """
    rows, remark = rows_of_split(read_rows(path, config.caption_key), config.split, path)
    samples = samples_of(rows, folder, keys_have_suffixes=keys_have_suffixes)
    return SourceData(samples, remarks=(remark,) if remark else ())


def _metadata(folder: Path) -> Path | None:
    """Return the file that describes a folder's images; None where there is none.

    Raises:
        DataError: there are several.
    """
    found = [folder / name for name in METADATA if (folder / name).is_file()]
    if len(found) > 1:
        names = " and ".join(path.name for path in found)
        raise DataError(f"{folder} holds {names}: name one with captions=")
    return found[0] if found else None


def _with_texts(folder: Path, texts: Texts, split: str) -> Sequence[SourceSample]:
    images = (path for path in files_below(folder) if path.suffix.lower() in IMAGE_SUFFIXES)
    if next(images, None) is None:
        raise DataError(
            f"{folder} has no images ({', '.join(IMAGE_SUFFIXES)}): name another folder"
        )
    apart = texts.folder != folder
    root = folder_of_lists(texts.folder)
    splits = listed_splits(root) if apart else []
    if not splits or split == ALL:
        return read_beside(folder, texts)
    if split not in splits:
        raise DataError(
            f"{root} has the splits {', '.join(splits)} (filenames.pickle): "
            f"split={split} is none of them; split={ALL} takes all images"
        )
    return read_listed(folder, texts, keys_of_split(root, split))


def read_coco(config: ShardsConfig) -> SourceData:
    """Read ``captions_<split>.json`` and find its images; every image is its own class.

    Raises:
        DataError: missing or unreadable files.
    """
    folder = folder_at(config.images, "images", "COCO's folder of images, e.g. train2014")
    if not config.captions:
        raise DataError("captions= is missing: name COCO's captions_train2014.json or the like")
    return read_captions_file(folder, Path(config.captions), config, keys_have_suffixes=False)
