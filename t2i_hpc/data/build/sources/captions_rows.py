"""One image in a captions file, as JSON, tables and parquet files say it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from t2i_hpc.common.errors import DataError
from t2i_hpc.data.images import IMAGE_SUFFIXES
from t2i_hpc.data.sidecars import LARGEST_CLASS, NO_CLASS, Value, captions_in, source_in

FORMS = (
    "JSON lines or a list of objects such as {'file_name': …, 'caption': …}, a table (.csv, .tsv, "
    ".parquet) with such columns, COCO's or Karpathy's JSON"
)
IMAGE_KEYS = (
    "file_name",
    "filename",
    "image",
    "file",
    "image_name",
    "image_path",
    "image_file",
    "img",
    "img_path",
    "filepath",
    "path",
    "name",
)
_WHOLE = re.compile(r"^(\d+)\.0$")  # as pandas writes numbers of which some are missing


@dataclass(frozen=True)
class Row:
    """One image in a captions file.

    Attributes:
        name: path of the image inside its folder; empty: it names none.
        captions: texts, perhaps none.
        class_id: NO_CLASS where there is none, or only a name.
        class_name: of the class, where it has no number.
        where: what says it, for messages.
        split: the split that it names, or "".
        inside: a folder in which the image may also be, as Karpathy's files name it.
        source: what else is said of the image.
    """

    name: str
    captions: tuple[str, ...]
    where: str
    class_id: int = NO_CLASS
    class_name: str = ""
    split: str = ""
    inside: str = ""
    source: Mapping[str, Value] = field(default_factory=dict)


def row_of(found: object, where: str, key: str) -> Row:
    """Return what an object says of an image, by the usual names of its keys."""
    content: Mapping[str, Any] = found if isinstance(found, dict) else {}
    by_name = {name.lower(): value for name, value in content.items() if isinstance(name, str)}
    names = (by_name.get(name) for name in IMAGE_KEYS)
    class_id, class_name = _class(by_name.get("class"), where)
    folder = by_name.get("filepath")
    split = by_name.get("split")
    return Row(
        name=next((name for name in names if isinstance(name, str) and name), ""),
        captions=captions_in(content, key),
        where=where,
        class_id=class_id,
        class_name=class_name,
        split=split if isinstance(split, str) else "",
        inside=folder if isinstance(folder, str) else "",
        source=source_in(content, (*IMAGE_KEYS, "split", key.lower())),
    )


def rows_of_objects(found: Iterable[object], path: Path, key: str, what: str) -> list[Row]:
    """Return a row of each object, where one names an image; `what` is what a message calls it."""
    rows = [row_of(one, f"{what} {place} of {path}", key) for place, one in enumerate(found, 1)]
    if rows and not any(row.name for row in rows):
        raise DataError(
            f"no {what} of {path} names an image ({', '.join(IMAGE_KEYS[:3])}, …): name {FORMS}"
        )
    return rows


def _class(value: object, where: str) -> tuple[int, str]:
    """Return the number of a class, or its name; neither where nothing is given."""
    if value is None or value == "" or value != value:  # noqa: PLR0124  NaN: none, for pandas
        return NO_CLASS, ""
    text = _WHOLE.sub(r"\1", str(value).strip())
    if not isinstance(value, bool) and text.isdecimal() and int(text) < LARGEST_CLASS:
        return int(text), ""
    if isinstance(value, str) and not re.fullmatch(r"-?[\d.]+", text):
        return NO_CLASS, text
    raise DataError(f"{where} has the class {value!r}: write a whole number from 0 on, or a name")


def joined(rows: Iterable[Row]) -> list[Row]:
    """Join the captions of rows that name the same image, at the place of the first."""
    found: dict[str, Row] = {}
    for row in rows:
        name = row.name or row.where
        if name not in found:
            found[name] = row
            continue
        first = found[name]
        given = (first.class_id, first.class_name), (row.class_id, row.class_name)
        if given[0] != given[1]:
            raise DataError(
                f"{row.where} gives {row.name} another class than {first.where}: correct one"
            )
        found[name] = replace(first, captions=first.captions + row.captions)
    return list(found.values())


def is_image_name(name: str) -> bool:
    """Return whether a name ends as those of images do."""
    return name.lower().endswith(IMAGE_SUFFIXES)
