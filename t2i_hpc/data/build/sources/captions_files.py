"""One file with the captions of many images, in the forms in which data sets come.

- JSON lines or a list of JSON objects, one an image or one a caption;
- tables (CSV, TSV, parquet) with a column of image names and one of captions, and Flickr's
  ``name.jpg#0<TAB>caption``;
- COCO's ``images`` and ``annotations``; Karpathy's ``images`` with ``sentences``, which names the
  split of each; an object of captions by image name.

What a file is follows from its content as far as that is clear, since names of such files vary.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

from t2i_hpc.common.errors import ConfigurationError, DataError
from t2i_hpc.data.build.sources.sample import SourceSample, Unfit, located, numbered, read_text
from t2i_hpc.data.images import IMAGE_SUFFIXES
from t2i_hpc.data.sidecars import (
    CAPTION_KEYS,
    LARGEST_CLASS,
    NAMES,
    NO_CAPTION,
    NO_CLASS,
    NO_IMAGE,
    Value,
    captions_in,
    lines_of,
    source_in,
)

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
ALL = "all"
_RESTVAL = "restval"  # images of COCO's validation set that all work trains on
# The Flickr8k that people share has a space for the tab here and there.
_TOKEN = re.compile(r"^(.+?\.\w+|.+?(?=#\w+\t))#[0-9a-z]+[\t ]\s*(.*)$")
_WHOLE = re.compile(r"^(\d+)\.0$")  # as pandas writes numbers of which some are missing
_MOST_COLUMN = 16 << 20  # characters of one cell
PARQUET_EXTRA = "pip install 't2i-hpc[parquet]'"


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
        return _joined(_objects(_parquet(path, key), path, key, "row"))
    if suffix in (".pickle", ".pkl"):
        raise DataError(f"{path} is a pickle: use source=pickles, or name {FORMS}")
    text = read_text(path, "a captions file")
    if not text.strip():
        raise DataError(f"{path} is empty: name {FORMS}")
    if text.lstrip()[0] in "[{" or suffix in (".json", ".jsonl", ".ndjson"):
        return _json_rows(text, path, key)
    return _joined(_table_rows(text, path, key))


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


# --- JSON


def _json_rows(text: str, path: Path, key: str) -> list[Row]:
    lines = [(place, line) for place, line in enumerate(lines_of(text), 1) if line.strip()]
    if path.suffix.lower() in (".jsonl", ".ndjson") or _is_object(lines[0][1], len(lines)):
        found = [(_parsed(line, f"line {place} of {path}"), place) for place, line in lines]
        return _joined([_row(one, f"line {place} of {path}", key) for one, place in found])
    content = _parsed(text, str(path))
    if isinstance(content, list):
        return _joined(_objects(content, path, key, "object"))
    if isinstance(content, dict):
        images, notes = content.get("images"), content.get("annotations")
        if isinstance(images, list) and isinstance(notes, list):
            return _coco_rows(images, notes, path, key)
        if isinstance(images, list):
            return _joined(_objects(images, path, key, "image"))
        if isinstance(notes, list):
            return _joined(_objects(notes, path, key, "annotation"))
        if content and all(_is_image_name(name) for name in content):
            return [
                Row(name, captions_in({"captions": texts}), f"{path}, {name}")
                for name, texts in content.items()
            ]
    raise DataError(f"{path} is JSON of a form that is not known: name {FORMS}")


def _parsed(text: str, where: str) -> object:
    try:
        value: object = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where} is not readable JSON ({error}): name {FORMS}") from error
    return value


def _is_object(line: str, lines: int) -> bool:
    """Whether the first of several lines is a whole object, as in JSON lines of any name."""
    try:
        return lines > 1 and isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _is_image_name(name: str) -> bool:
    return name.lower().endswith(IMAGE_SUFFIXES)


def _objects(found: Iterable[object], path: Path, key: str, what: str) -> list[Row]:
    rows = [_row(one, f"{what} {place} of {path}", key) for place, one in enumerate(found, 1)]
    if rows and not any(row.name for row in rows):
        raise DataError(
            f"no {what} of {path} names an image ({', '.join(IMAGE_KEYS[:3])}, …): name {FORMS}"
        )
    return rows


def _row(found: object, where: str, key: str) -> Row:
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


def _coco_rows(images: list[Any], notes: list[Any], path: Path, key: str) -> list[Row]:
    """Return one row a listed image, in order; captions by the image's number or text."""
    if not images:
        raise DataError(f"{path} lists no images: fetch the captions file again")
    notes = [note for note in notes if isinstance(note, dict)]
    texts: dict[str, list[str]] = {}
    for note in notes:
        texts.setdefault(str(note.get("image_id")), []).extend(captions_in(note, key))
    if not any(texts.values()) and any("bbox" in note for note in notes):
        raise DataError(
            f"{path} is COCO's file of objects (instances), which has no captions: name the "
            "captions_….json of the same images"
        )
    rows = []
    for place, image in enumerate(images, 1):
        content = image if isinstance(image, dict) else {}
        number = str(content.get("id"))
        row = _row(content, f"image {content.get('id', place)} of {path}", key)
        rows.append(replace(row, captions=tuple(texts.pop(number, ())) or row.captions, split=""))
    if not any(row.name for row in rows):
        raise DataError(f"no image of {path} has a file_name: name {FORMS}")
    return rows + [
        Row("", (), f"captions of {path} belong to an image that is not listed, {number},")
        for number in texts
    ]


def _joined(rows: Iterable[Row]) -> list[Row]:
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


# --- tables


def _table_rows(text: str, path: Path, key: str) -> list[Row]:
    lines = lines_of(text)
    filled = [(place, line) for place, line in enumerate(lines, 1) if line.strip()]
    tokens = [_TOKEN.match(line) for _, line in filled]
    if tokens[0]:
        return [
            _token_row(match, f"line {place} of {path}")
            for match, (place, _) in zip(tokens, filled, strict=True)
        ]
    delimiter = next((mark for mark in "\t|;," if mark in filled[0][1]), "")
    if not delimiter:
        raise DataError(f"{path} is no captions file of a form that is known: name {FORMS}")
    table = _csv(text, path) if delimiter == "," else _split(filled, delimiter)
    header = [cell.strip().lower() for cell in table[0][1]]
    captions = [key.lower()] if key else list(CAPTION_KEYS)
    if not {*header} & {*IMAGE_KEYS} or not {*header} & {*captions}:
        if len(header) == 2 and _is_image_name(header[0]):
            header = ["file_name", captions[0]]
        else:
            raise DataError(
                f"the first line of {path} names the columns {', '.join(header)[:200]}: one must "
                f"be {' or '.join(IMAGE_KEYS[:3])} and one {' or '.join(captions[:3])}; "
                "caption_key= takes another name of the latter"
            )
    else:
        table = table[1:]
    return [_table_row(header, place, cells, path, key) for place, cells in table]


def _token_row(match: re.Match[str] | None, where: str) -> Row:
    if match is None:
        return Row("", (), where)
    return Row(match[1], captions_in({"caption": match[2]}), where)


def _table_row(header: list[str], place: int, cells: list[str], path: Path, key: str) -> Row:
    where = f"line {place} of {path}"
    if len(cells) != len(header):
        return Row("", (), f"{where} has {len(cells)} columns instead of {len(header)} and")
    row = _row(dict(zip(header, map(_value, cells), strict=True)), where, key)
    source = {name: _number(value) for name, value in row.source.items() if value != ""}
    return replace(row, name=re.sub(r"#[0-9a-z]+$", "", row.name), source=source)


def _number(value: Value) -> Value:
    """Return the number that a cell of a text table holds, or else its text."""
    text = str(value)
    try:
        return int(text) if re.fullmatch(r"-?\d{1,18}", text) else float(text)
    except ValueError:
        return value


def _value(cell: str) -> object:
    """Return what a cell says; some tables hold lists of captions as JSON."""
    text = cell.strip()
    if text.startswith('["'):
        with contextlib.suppress(ValueError, RecursionError):
            return json.loads(text)
    return text


def _split(lines: Sequence[tuple[int, str]], delimiter: str) -> list[tuple[int, list[str]]]:
    """Split lines of a table whose quotes are letters, unless they enclose a whole cell."""
    return [(place, [_unquoted(cell) for cell in line.split(delimiter)]) for place, line in lines]


def _unquoted(cell: str) -> str:
    text = cell.strip()
    inner = text[1:-1]
    enclosed = len(text) > 1 and text[0] == text[-1] == '"'
    if enclosed and '"' not in inner.replace('""', ""):
        return inner.replace('""', '"')
    return cell


def _csv(text: str, path: Path) -> list[tuple[int, list[str]]]:
    csv.field_size_limit(_MOST_COLUMN)
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    rows = []
    try:
        rows = [(reader.line_num, cells) for cells in reader if cells]
    except csv.Error as error:
        raise DataError(
            f"line {reader.line_num} of {path} is not readable CSV ({error}): enclose captions "
            "with commas or quotes in quotes, and double the quotes inside"
        ) from error
    return rows


def _parquet(path: Path, key: str) -> list[dict[str, Any]]:
    """Return the rows of a parquet file, only the columns that are used."""
    if not path.is_file():
        raise DataError(f"cannot read {path}, a captions file: there is no such file")
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise ConfigurationError(
            f"{path} is a parquet file, which needs an extra: {PARQUET_EXTRA}"
        ) from (error)
    known = {*IMAGE_KEYS, *CAPTION_KEYS, key.lower(), "class", "split"}
    try:
        file = parquet.ParquetFile(path)  # not a data set: folders called a=b are no columns
        types = {field.name: str(field.type) for field in file.schema_arrow}
        names = {name: name.lower() for name in types if name.lower() in known}
        images = [n for n in names if names[n] in IMAGE_KEYS and not _is_text(types[n])]
        texts = [n for n in names if names[n] in IMAGE_KEYS and _is_text(types[n])]
        rows = file.read(columns=[*names.keys() - images]).to_pylist() if texts else []
    except Exception as error:  # pyarrow raises anything on damaged files
        raise DataError(f"{path} is not readable as parquet ({error}): fetch it again") from error
    if images and not texts:
        raise DataError(
            f"{path} holds the images themselves (column {images[0]}): use source=parquet "
            f"images={path.parent}"
        )
    if not texts:
        raise DataError(
            f"{path} has the columns {', '.join(types)[:200]}: one must be "
            f"{' or '.join(IMAGE_KEYS[:3])}; caption_key= names that of the captions"
        )
    return rows


def _is_text(type_name: str) -> bool:
    return re.match(r"(dictionary<values=)?(large_)?string\b", type_name) is not None
