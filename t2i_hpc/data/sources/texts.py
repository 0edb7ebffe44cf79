"""Captions as they lie beside images: in text files, one a line, or under a name in JSON.

The names are the same in every source. Lines end at line feeds alone: scraped captions hold
other characters that Python takes for ends of lines, such as U+0085 and U+2028.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from t2i_hpc.common.errors import DataError

CAPTION_KEYS = (
    "captions",
    "caption",
    "text",
    "texts",
    "sentences",
    "sentence",
    "raw",
    "description",
    "comment",
)
NAMES = "'captions', 'caption' or 'text'"  # the most usual, for messages


def decode_text(content: bytes) -> str:
    """Decode UTF-8 with or without a byte order mark, or UTF-16 with one.

    Bytes that are neither become U+FFFD.
    """
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return content.decode("utf-16", errors="replace")
    return content.decode("utf-8-sig", errors="replace")


def read_text(path: Path, holds: str) -> str:
    """Return a text file's content, see :func:`decode_text`.

    Raises:
        DataError: there is no such file.
    """
    try:
        return decode_text(path.read_bytes())
    except OSError as error:
        raise DataError(f"cannot read {path}, {holds}: {error.strerror}") from error


def read_json(path: Path, holds: str) -> object:
    """Return a JSON file's value.

    Raises:
        DataError: there is no such file or it is not JSON.
    """
    try:
        value: object = json.loads(read_text(path, holds))
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{path}, {holds}, is not readable JSON ({error}); fetch the file again"
        ) from error
    return value


def lines_of(text: str) -> list[str]:
    """Return the lines of a text; they end at line feeds, with or without a carriage return."""
    return [line.removesuffix("\r") for line in text.split("\n")]


def non_empty(texts: Sequence[str]) -> tuple[str, ...]:
    """Return the texts that say something, without surrounding space.

    Halves of surrogate pairs, which JSON can name and no file can hold, become question marks.
    """
    whole = (text.encode(errors="replace").decode() for text in texts)
    return tuple(text.strip() for text in whole if text.strip())


def captions_in(content: Mapping[str, Any], key: str = "") -> tuple[str, ...]:
    """Return the captions in the description of an image.

    Args:
        content: a JSON object or a row of a table.
        key: the name under which they stand, in any case; empty: the first of
            :data:`CAPTION_KEYS` that says something. The value is a text, or a list of texts or
            of objects that hold one (Karpathy's ``sentences``).
    """
    by_name = {name.lower(): value for name, value in content.items() if isinstance(name, str)}
    for name in [key.lower()] if key else CAPTION_KEYS:
        if texts := _texts_in(by_name.get(name)):
            return texts
    return ()


def captions_of(text: str, content: Mapping[str, Any], key: str = "") -> tuple[str, ...]:
    """Return the captions of an image with a text file and a description beside it.

    Those of the text file are taken, one a line, if it has any and no `key` is given. A text
    that equals the description's caption up to white space is one caption: img2dataset writes
    captions with line breaks into text files as they are.
    """
    described = captions_in(content, key)
    lines = non_empty(lines_of(text))
    if not lines or (key and described):
        return described
    if len(described) == 1 and described[0].split() == text.split():
        return described
    return lines


def _texts_in(value: object) -> tuple[str, ...]:
    found = value if isinstance(value, list) else [value]
    texts = []
    for one in found:
        if isinstance(one, str):
            texts.append(one)
        elif isinstance(one, dict):
            named = (one.get(name) for name in ("raw", "caption", "text", "sentence"))
            texts += [text for text in named if isinstance(text, str)][:1]
    return non_empty(texts)
