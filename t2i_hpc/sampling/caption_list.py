"""Captions in a file, each with a key: one a line, a table, or JSON.

- text: one caption a line;
- ``.csv``, ``.tsv``: a column of captions and perhaps one of keys, by the names in the first line;
- ``.json``, ``.jsonl``: texts, objects with a caption and perhaps a key, an object of captions by
  key, or COCO's ``annotations``.

A caption without a key has its place in the file as key.
"""

from __future__ import annotations

import csv
import io
import itertools
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from t2i_hpc.common.errors import ConfigurationError
from t2i_hpc.data.sidecars import CAPTION_KEYS, captions_in, lines_of

KEYS = ("key", "id", "image_id", "file_name", "filename", "name")
_FORMS = (
    "one caption a line, a .csv with a column 'caption' (and perhaps 'key'), or a .json of texts, "
    "of objects such as {'key': …, 'caption': …}, or of captions by key"
)
_TABLES = {".csv": ",", ".tsv": "\t"}
_JSON_LINES = (".jsonl", ".ndjson")


@dataclass(frozen=True)
class KeyedCaption:
    """A caption and what names it."""

    key: str
    caption: str


@dataclass(frozen=True)
class CaptionList:
    """Captions in the order of their file; `empty` of them said nothing and are left out."""

    entries: Sequence[KeyedCaption]
    empty: int = 0

    @classmethod
    def of(cls, captions: Iterable[tuple[str, str]]) -> CaptionList:
        """Return captions by key, in order.

        Where the key is empty, their place is. A key of several captions becomes key.0, key.1 …

        Raises:
            ConfigurationError: two captions have one key nevertheless.
        """
        named = [(key or f"{place:06d}", text) for place, (key, text) in enumerate(captions)]
        often = {key for key, count in Counter(key for key, _ in named).items() if count > 1}
        places = {key: itertools.count() for key in often}
        given = [
            (f"{key}.{next(places[key])}" if key in often else key, " ".join(text.split()))
            for key, text in named
        ]
        entries = [KeyedCaption(key, text) for key, text in given if text]
        twice = [key for key, count in Counter(one.key for one in entries).items() if count > 1]
        if twice:
            raise ConfigurationError(
                f"{len(twice):,} keys of captions occur more than once, the first is {twice[0]!r}: "
                "give each caption a key of its own, or none"
            )
        return cls(entries, len(given) - len(entries))


def read_caption_list(name: str) -> CaptionList:
    """Read a file of captions; `name` is its path.

    Raises:
        ConfigurationError: it cannot be read, is of no form that is known, or holds no caption.
    """
    path = Path(name)
    try:
        text = path.read_text(encoding="utf-8-sig")
        found = CaptionList.of(_captions(path, text))
    except (OSError, ValueError, RecursionError, csv.Error) as error:
        raise ConfigurationError(
            f"captions_file={name} cannot be read ({error}): name a UTF-8 text file with {_FORMS}"
        ) from error
    if not found.entries:
        raise ConfigurationError(f"captions_file={name} is empty: write {_FORMS}")
    return found


def _captions(path: Path, text: str) -> Iterator[tuple[str, str]]:
    suffix = path.suffix.lower()
    if suffix in _TABLES:
        return _of_table(text, _TABLES[suffix])
    if suffix in _JSON_LINES:
        return _of_objects([json.loads(line) for line in lines_of(text) if line.strip()])
    if suffix == ".json":
        return _of_json(json.loads(text))
    return (("", line) for line in lines_of(text.rstrip("\r\n")))


def _of_table(text: str, delimiter: str) -> Iterator[tuple[str, str]]:
    rows = [row for row in csv.reader(io.StringIO(text, newline=""), delimiter=delimiter) if row]
    header = [cell.strip().lower() for cell in rows[0]] if rows else []
    if set(header) & set(CAPTION_KEYS):
        if broken := next((row for row in rows if len(row) != len(header)), None):
            raise ValueError(f"a row has {len(broken)} columns, not {len(header)}: {broken[0]!r}")
        return _of_objects([dict(zip(header, row, strict=True)) for row in rows[1:]])
    if all(len(row) == 1 for row in rows):
        return (("", row[0]) for row in rows)
    raise ValueError(f"its columns are {', '.join(header)[:200]}, none of them 'caption'")


def _of_json(content: object) -> Iterator[tuple[str, str]]:
    if isinstance(content, list):
        return _of_objects(content)
    if isinstance(content, dict):
        notes = content.get("annotations")
        if isinstance(notes, list):
            return _of_objects(notes)
        return _of_objects([{"key": key, "captions": value} for key, value in content.items()])
    raise ValueError("it holds neither a list nor an object")


def _of_objects(found: Sequence[object]) -> Iterator[tuple[str, str]]:
    for one in found:
        if isinstance(one, str):
            yield "", one
        elif isinstance(one, dict):
            yield from _of_object(one)
        else:
            raise ValueError(f"{str(one)[:60]!r} is neither a text nor an object")


def _of_object(content: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    key = next((str(content[name]) for name in KEYS if content.get(name) not in (None, "")), "")
    for text in captions_in(content) or ("",):
        yield key, text
