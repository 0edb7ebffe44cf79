"""One file with the captions of many images, in the forms in which data sets come.

- JSON lines or a list of JSON objects, one an image or one a caption;
- tables (CSV, TSV, parquet) with a column of image names and one of captions, and Flickr's
  ``name.jpg#0<TAB>caption``;
- COCO's ``images`` and ``annotations``; Karpathy's ``images`` with ``sentences``, which names the
  split of each; an object of captions by image name.

What a file is follows from its content as far as that is clear, since names of such files vary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

from t2i_hpc.common.errors import DataError
from t2i_hpc.data.build.sources.captions_json import json_rows
from t2i_hpc.data.build.sources.captions_rows import FORMS, Row, joined, rows_of_objects
from t2i_hpc.data.build.sources.captions_tables import parquet_objects, table_rows
from t2i_hpc.data.build.sources.sample import SourceSample, Unfit, located, numbered, read_text
from t2i_hpc.data.sidecars import NAMES, NO_CAPTION, NO_CLASS, NO_IMAGE

ALL = "all"
_RESTVAL = "restval"  # images of COCO's validation set that all work trains on


def read_rows(path: Path, key: str = "") -> list[Row]:
    """Read a captions file, all splits of it; captions of one image are joined.

    Args:
        path: the file.
        key: name of the captions; empty: one of the usual names.

    Raises:
        DataError: it is missing, unreadable, or of no form that is known.
        ConfigurationError: it is a parquet file and pyarrow is not installed.
    """
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        return joined(rows_of_objects(parquet_objects(path, key), path, key, "row"))
    if suffix in (".pickle", ".pkl"):
        raise DataError(f"{path} is a pickle: use source=pickles, or name {FORMS}")
    text = read_text(path, "a captions file")
    if not text.strip():
        raise DataError(f"{path} is empty: name {FORMS}")
    if text.lstrip()[0] in "[{" or suffix in (".json", ".jsonl", ".ndjson"):
        return json_rows(text, path, key)
    return joined(table_rows(text, path, key))


def samples_of(
    rows: Sequence[Row], folder: Path, *, keys_have_suffixes: bool
) -> list[SourceSample]:
    """Find the images of rows and number their classes.

    Args:
        rows: of one split.
        folder: that of the images.
        keys_have_suffixes: whether the key of a.jpg is "a.jpg" or "a".
    """
    names = sorted({row.class_name for row in rows} - {""})
    first = 1 + max((row.class_id for row in rows), default=NO_CLASS)
    numbers = {name: first + place for place, name in enumerate(names)}
    samples = [_sample(row, folder, keys_have_suffixes) for row in rows]
    return numbered(
        replace(sample, class_id=numbers[row.class_name]) if row.class_name else sample
        for sample, row in zip(samples, rows, strict=True)
    )


def rows_of_split(rows: Sequence[Row], split: str, path: Path) -> tuple[list[Row], str]:
    """Return the rows of a split, where a file names splits, and a remark on it.

    Raises:
        DataError: the file names splits, but not this one.
    """
    splits = sorted({row.split for row in rows} - {""})
    if not splits or split == ALL:
        return list(rows), ""
    wanted = {split, _RESTVAL} if split == "train" else {split}
    found = [row for row in rows if row.split in wanted]
    if not found:
        raise DataError(
            f"{path} has the splits {', '.join(splits)}: split={split} is none of them; "
            f"split={ALL} takes all images"
        )
    rest = sum(row.split == _RESTVAL for row in found)
    return found, f"{rest:,} of them from {path.name}'s split {_RESTVAL}" if rest else ""


def _sample(row: Row, folder: Path, keys_have_suffixes: bool) -> SourceSample:
    if not row.name:
        return SourceSample(row.where, folder, unfit=Unfit(NO_IMAGE, f"{row.where} has no image"))
    path, unfit = located(row.name, folder, row.where)
    if unfit and row.inside:
        other, also = located(f"{row.inside}/{row.name}", folder, row.where)
        path, unfit = (other, None) if also is None else (path, unfit)
    if not row.captions and not unfit:
        unfit = Unfit(NO_CAPTION, f"{row.where} has no caption for {row.name} ({NAMES})")
    key = row.name if keys_have_suffixes else str(PurePosixPath(row.name).with_suffix(""))
    given = row.source or None
    return SourceSample(key, path, row.captions, row.class_id, unfit=unfit, source=given)
