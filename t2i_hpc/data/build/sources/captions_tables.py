"""Captions files that are tables: CSV, TSV, parquet, Flickr's ``name.jpg#0<TAB>caption``."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from t2i_hpc.common.errors import ConfigurationError, DataError
from t2i_hpc.data.build.sources.captions_rows import (
    FORMS,
    IMAGE_KEYS,
    Row,
    is_image_name,
    row_of,
)
from t2i_hpc.data.sidecars import CAPTION_KEYS, Value, captions_in, lines_of

PARQUET_EXTRA = "pip install 't2i-hpc[parquet]'"
# The Flickr8k that people share has a space for the tab here and there.
_TOKEN = re.compile(r"^(.+?\.\w+|.+?(?=#\w+\t))#[0-9a-z]+[\t ]\s*(.*)$")
_MOST_COLUMN = 16 << 20  # characters of one cell


def table_rows(text: str, path: Path, key: str) -> list[Row]:
    """Return a row of each line of a table; a DataError says which column is missing."""
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
        if len(header) == 2 and is_image_name(header[0]):
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
    row = row_of(dict(zip(header, map(_value, cells), strict=True)), where, key)
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


def parquet_objects(path: Path, key: str) -> list[dict[str, Any]]:
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
