"""A plain folder of images with captions beside them: data of one's own.

Either every image has a text file of the same name (``a.jpg`` and ``a.txt``, one caption a
line), or one ``metadata.jsonl`` describes them, a JSON object a line::

    {"file_name": "a.jpg", "text": "a red circle"}
    {"file_name": "b.png", "captions": ["a blue square", "a square, blue"], "class": 7}

With metadata the images that it names are taken, in its order, and other files are left alone.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from t2i_hpc.common.errors import DataError
from t2i_hpc.config.data import ShardsConfig
from t2i_hpc.data.sources.sample import (
    IMAGE_SUFFIXES,
    SourceSample,
    folder_at,
    non_empty,
    read_text,
    refuse,
    refuse_missing_images,
    refuse_outside,
)

_METADATA = "metadata.jsonl"


def read_folder(config: ShardsConfig) -> Sequence[SourceSample]:
    """Read a folder with ``metadata.jsonl`` or with text files; sorted by name in the latter.

    Raises:
        DataError: an empty folder, or captions and images that do not match.
    """
    folder = folder_at(config.images, "images", "a folder of images")
    metadata = Path(config.captions) if config.captions else folder / _METADATA
    if config.captions or metadata.is_file():
        return _read_metadata(folder, metadata)
    return _read_text_files(folder)


def _read_text_files(folder: Path) -> list[SourceSample]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    images = [path for path in files if path.suffix.lower() in IMAGE_SUFFIXES]
    if not images:
        raise DataError(
            f"{folder} has no images ({', '.join(IMAGE_SUFFIXES)}): name another folder"
        )
    stems = {path.with_suffix("") for path in images}
    texts = {path.with_suffix("") for path in files if path.suffix == ".txt"}
    refuse(
        [str(path) for path in images if path.with_suffix("") not in texts],
        f"of {len(images):,} images in {folder} have no .txt file",
        f"write one beside each image, or one {_METADATA}",
    )
    refuse(
        sorted(f"{stem}.txt" for stem in texts - stems),
        f"caption files in {folder} have no image",
        "add the images or remove the files",
    )
    samples = [
        SourceSample(
            path.relative_to(folder).as_posix(),
            path,
            non_empty(read_text(path.with_suffix(".txt"), "a caption file").splitlines()),
            place,
        )
        for place, path in enumerate(images)
    ]
    return _with_captions(samples)


def read_metadata_captions(metadata: Path) -> list[str]:
    """Return all captions of a ``metadata.jsonl``, line by line.

    Raises:
        DataError: a missing or unreadable file.
    """
    return [text for row in _rows(metadata) for text in _captions(row)]


def _rows(metadata: Path) -> list[dict[str, Any]]:
    lines = read_text(metadata, "the captions of a folder").splitlines()
    rows = [
        _parse(line, f"line {place + 1} of {metadata}")
        for place, line in enumerate(lines)
        if line.strip()
    ]
    if not rows:
        raise DataError(f"{metadata} names no images: write one JSON object a line")
    return rows


def _read_metadata(folder: Path, metadata: Path) -> list[SourceSample]:
    rows = _rows(metadata)
    names = [str(row["file_name"]) for row in rows]
    refuse(
        [name for name, count in Counter(names).items() if count > 1],
        f"images stand more than once in {metadata}",
        "keep one line an image",
    )
    refuse_missing_images({name: folder / name for name in names}, str(folder))
    return _with_captions(
        [
            SourceSample(name, folder / name, _captions(row), int(row.get("class", place)))
            for place, (name, row) in enumerate(zip(names, rows, strict=True))
        ]
    )


def _parse(line: str, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{where} is not readable JSON ({error}): write one object a line"
        ) from error
    if not isinstance(row, dict) or not isinstance(row.get("file_name"), str):
        raise DataError(f"{where} has no 'file_name': write one object a line, see --help")
    refuse_outside(row["file_name"], where)
    if "class" in row and type(row["class"]) is not int:
        raise DataError(f"{where} has the class {row['class']!r}: write a whole number")
    texts = row.get("captions", row.get("text"))
    if isinstance(texts, list) and all(isinstance(text, str) for text in texts):
        return row
    if not isinstance(texts, str):
        raise DataError(f"{where} has neither 'text' (a string) nor 'captions' (a list of strings)")
    return row


def _captions(row: dict[str, Any]) -> tuple[str, ...]:
    texts = row.get("captions", row.get("text"))
    return non_empty([texts] if isinstance(texts, str) else texts or [])


def _with_captions(samples: list[SourceSample]) -> list[SourceSample]:
    refuse(
        [str(sample.path) for sample in samples if not sample.captions],
        "images have no caption",
        "write at least one caption an image",
    )
    return samples
