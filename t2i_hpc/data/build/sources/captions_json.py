"""Captions files of JSON: lines, lists, COCO's, Karpathy's, an object of captions by image."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from t2i_hpc.common.errors import DataError
from t2i_hpc.data.build.sources.captions_rows import (
    FORMS,
    Row,
    is_image_name,
    joined,
    row_of,
    rows_of_objects,
)
from t2i_hpc.data.sidecars import captions_in, lines_of


def json_rows(text: str, path: Path, key: str) -> list[Row]:
    """Return a row of each image in JSON; a DataError says what form is not known."""
    lines = [(place, line) for place, line in enumerate(lines_of(text), 1) if line.strip()]
    if path.suffix.lower() in (".jsonl", ".ndjson") or _is_object(lines[0][1], len(lines)):
        found = [(_parsed(line, f"line {place} of {path}"), place) for place, line in lines]
        return joined([row_of(one, f"line {place} of {path}", key) for one, place in found])
    content = _parsed(text, str(path))
    if isinstance(content, list):
        return joined(rows_of_objects(content, path, key, "object"))
    if isinstance(content, dict):
        images, notes = content.get("images"), content.get("annotations")
        if isinstance(images, list) and isinstance(notes, list):
            return _coco_rows(images, notes, path, key)
        if isinstance(images, list):
            return joined(rows_of_objects(images, path, key, "image"))
        if isinstance(notes, list):
            return joined(rows_of_objects(notes, path, key, "annotation"))
        if content and all(is_image_name(name) for name in content):
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
        row = row_of(content, f"image {content.get('id', place)} of {path}", key)
        rows.append(replace(row, captions=tuple(texts.pop(number, ())) or row.captions, split=""))
    if not any(row.name for row in rows):
        raise DataError(f"no image of {path} has a file_name: name {FORMS}")
    return rows + [
        Row("", (), f"captions of {path} belong to an image that is not listed, {number},")
        for number in texts
    ]
