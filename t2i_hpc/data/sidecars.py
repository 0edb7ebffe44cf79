"""The files beside an image that others made: which is the image, what captions and class it has.

The rules are the same for members of a tar, files of a folder and every reader. The rule for names
is webdataset's: all members whose path is the same up to the first dot after the last slash are
one sample, and the rest of the name says what each is. Captions are, one a line, those of ``.txt``,
else those in ``.json``; a class is a whole number under ``class`` in the JSON, or in ``.cls``.
Lines end at line feeds alone: scraped captions hold other characters that Python takes for ends of
lines, such as U+0085 and U+2028.
"""

from __future__ import annotations

import codecs
import json
import math
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from t2i_hpc.common.errors import DataError
from t2i_hpc.data.images import IMAGE_FORMATS_OF_SUFFIX

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
NO_CLASS = -1
NO_CAPTION = "no caption"
NO_IMAGE = "no image"
_ABOUT = ("readme", "license", "licence", "copying", "notice", "changelog", "citation", "authors")
UNREADABLE = "unreadable description"
LARGEST_CLASS = 1 << 62
Value = bool | int | float | str
_NO_SOURCE = ("key", "class", "exif", "status", "error_message")
_KINDS = frozenset((bool, int, float, str))
_LEFT_OUT = frozenset((*CAPTION_KEYS, *_NO_SOURCE))
_LONGEST_VALUE = 2000  # characters
_NAMES_KEPT = 64  # lists of names, each of which may be as long as a description
_FROM_JSON = json.JSONDecoder().decode
# How exifread, and so img2dataset's JSON, names the orientations of EXIF.
_ORIENTATIONS = {
    "Mirrored horizontal": 2,
    "Rotated 180": 3,
    "Mirrored vertical": 4,
    "Mirrored horizontal then rotated 90 CCW": 5,
    "Rotated 90 CW": 6,
    "Mirrored horizontal then rotated 90 CW": 7,
    "Rotated 90 CCW": 8,
}


class UnfitSample(Exception):  # noqa: N818 - it is no error: the sample is left out
    """A sample that cannot be used: what it is counted as, and the reason."""

    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(reason)
        self.kind, self.reason = kind, reason


@dataclass(frozen=True)
class Rules:
    """Which members of a sample are image and captions, where a user names them.

    Attributes:
        image: extension of the image, such as ``input.jpg``; empty: the one of an image format.
        caption: extension of the captions, such as ``syn.json``; empty: ``txt``, then ``json``.
        caption_key: name of the captions in JSON; empty: one of the usual names.
    """

    image: str = ""
    caption: str = ""
    caption_key: str = ""


class Description(NamedTuple):
    """What the text files beside an image hold.

    Attributes:
        captions: one or more texts.
        class_id: NO_CLASS where none is given.
        key: the image's name in its data set; empty: none is given.
        orientation: that of EXIF which the image had before it was encoded again; 0: unknown.
        source: what else is said of the image: url, licence, sizes, scores.
    """

    captions: tuple[str, ...]
    class_id: int
    key: str
    orientation: int
    source: Mapping[str, Value]


def split_name(name: str) -> tuple[str, str]:
    """Return the key of a member's sample and the member's extension, in lower case.

    Both are empty where the name has no extension or belongs to no sample: it begins with a
    dot, as macOS's leftovers do, or is about the data set, as README.txt is.
    """
    name = name.removeprefix("./")
    folder, slash, last = name.rpartition("/")
    stem, dot, extension = last.partition(".")
    if not dot or not stem or is_leftover(name) or is_about(last):
        return "", ""
    return folder + slash + stem, extension.lower()


def is_sample(extensions: Collection[str], rules: Rules) -> bool:
    """Whether members of one key are meant as an image or its captions."""
    kinds = {*IMAGE_FORMATS_OF_SUFFIX, ".txt", ".json"}
    named = {rules.image.lower(), rules.caption.lower()} - {""}
    return any(one in named or _suffix(one) in kinds for one in extensions)


def is_wanted(extension: str, rules: Rules) -> bool:
    """Whether a member of this extension may be part of a sample."""
    return extension == "cls" or (bool(extension) and is_sample([extension], rules))


def image_of(extensions: Collection[str], rules: Rules) -> str:
    """Return the extension of a sample's image.

    Raises:
        UnfitSample: there is none, or more than one.
    """
    if rules.image:
        if rules.image.lower() in extensions:
            return rules.image.lower()
        raise UnfitSample(NO_IMAGE, f"it has no member .{rules.image}, {_holds(extensions)}")
    images = [one for one in extensions if f".{one}" in IMAGE_FORMATS_OF_SUFFIX]
    if len(images) > 1:
        raise UnfitSample(
            "more than one image", f"it has more than one image, {_holds(extensions)}"
        )
    if not images:
        others = [one for one in extensions if _suffix(one) in IMAGE_FORMATS_OF_SUFFIX]
        hint = f": name it with image_member={others[0]}" if others else ""
        raise UnfitSample(NO_IMAGE, f"it has no image, {_holds(extensions)}{hint}")
    return images[0]


def described(
    members: Mapping[str, bytes], rules: Rules, extensions: Collection[str]
) -> Description:
    """Read the text files beside an image.

    Args:
        members: content of the sample's text members, by extension.
        rules: where captions are.
        extensions: those of all members, for the reason.

    Raises:
        UnfitSample: there is no caption, or JSON cannot be read.
    """
    content = _json(members.get("json"), ".json")
    return Description(
        captions=_captions(members, content, rules, extensions),
        class_id=_class(content.get("class"), members.get("cls")),
        key=str(content.get("key") or ""),
        orientation=orientation_in(content),
        source=source_in(content),
    )


def texts_of(extensions: Collection[str], rules: Rules) -> list[str]:
    """Return the extensions of the members that :func:`described` reads."""
    return [one for one in extensions if one in ("txt", "json", "cls", rules.caption.lower())]


def source_in(content: Mapping[str, Any], but: Collection[str] = ()) -> dict[str, Value]:
    """Return what is said of an image beside its captions: numbers, texts and yes or no.

    Args:
        content: a JSON object or a row of a table.
        but: other names that are left out.
    """
    return {
        name: value[:_LONGEST_VALUE] if type(value) is str else value
        for name in _told(tuple(content), frozenset(but))
        if type(value := content[name]) in _KINDS
        and not (type(value) is float and not math.isfinite(value))
    }


# Descriptions of a data set mostly have the same names, which are looked at once.


@lru_cache(_NAMES_KEPT)
def _told(names: tuple[str, ...], but: frozenset[str]) -> tuple[str, ...]:
    """Return the names that :func:`source_in` takes."""
    return tuple(name for name in names if name.lower() not in _LEFT_OUT | but)


@lru_cache(_NAMES_KEPT)
def _by_lower_case(names: tuple[str, ...]) -> dict[str, str]:
    return {name.lower(): name for name in names if isinstance(name, str)}


def orientation_in(content: Mapping[str, Any]) -> int:
    """Return the orientation that img2dataset notes of a photograph's EXIF, 0 if it notes none."""
    exif = content.get("exif")
    if isinstance(exif, str):
        if "Orientation" not in exif:
            return 0
        try:
            exif = json.loads(exif)
        except (ValueError, RecursionError):
            return 0
    named = exif.get("Image Orientation") if isinstance(exif, dict) else None
    return _ORIENTATIONS.get(named, 0) if isinstance(named, str) else 0


def _captions(
    members: Mapping[str, bytes],
    content: Mapping[str, Any],
    rules: Rules,
    extensions: Collection[str],
) -> tuple[str, ...]:
    if not rules.caption:
        found = captions_of(decode_text(members.get("txt", b"")), content, rules.caption_key)
    elif (name := rules.caption.lower()) not in members:
        raise UnfitSample(NO_CAPTION, f"it has no member .{rules.caption}, {_holds(extensions)}")
    elif _suffix(name) == ".json":
        found = captions_in(_json(members[name], f".{name}"), rules.caption_key)
    else:
        found = captions_of(decode_text(members[name]), content)
    if not found:
        named = f"{rules.caption_key!r}" if rules.caption_key else NAMES
        raise UnfitSample(
            NO_CAPTION,
            f"it has no caption: a .txt, or {named} in .json{_where_else(extensions, rules)}",
        )
    return found


def _where_else(extensions: Collection[str], rules: Rules) -> str:
    """Return where captions may be instead, for the reason."""
    if not rules.caption:
        others = [one for one in extensions if _suffix(one) in (".txt", ".json") and "." in one]
        if others:
            return f"; it holds .{', .'.join(others)}: name one with caption_member={others[0]}"
    if "txt" in extensions or "json" in extensions:
        return "; its text is empty" if "txt" in extensions else "; caption_key= takes other names"
    return ""


def _json(content: bytes | None, name: str) -> dict[str, Any]:
    try:
        found = _FROM_JSON(decode_text(content)) if content else {}
    except RecursionError:
        raise UnfitSample(UNREADABLE, f"its {name} is nested too deep") from None
    except ValueError as error:
        raise UnfitSample(UNREADABLE, f"its {name} is not readable JSON ({error})") from error
    return found if isinstance(found, dict) else {}


def _class(given: object, member: bytes | None) -> int:
    """Return the class of ``class`` in the JSON, else that of webdataset's ``.cls``."""
    if type(given) is int and 0 <= given < LARGEST_CLASS:
        return given
    text = decode_text(member).strip() if member else ""
    if not text:
        return NO_CLASS
    if not (text.isascii() and text.isdecimal()) or int(text) >= LARGEST_CLASS:
        raise UnfitSample(UNREADABLE, f"its .cls is {text[:40]!r}, no whole number")
    return int(text)


def _holds(extensions: Collection[str]) -> str:
    return f"it holds {', '.join(f'.{one}' for one in extensions)}"


def _suffix(extension: str) -> str:
    last = extension.rpartition("/")[2].rpartition(".")[2]
    return f".{last.lower()}" if last else ""


# --- captions in texts and in JSON


def captions_in(content: Mapping[str, Any], key: str = "") -> tuple[str, ...]:
    """Return the captions in the description of an image.

    Args:
        content: a JSON object or a row of a table.
        key: their name, in any case; empty: the first of
            :data:`CAPTION_KEYS` that says something. The value is a text, or a list of texts or
            of objects that hold one (Karpathy's ``sentences``).
    """
    if not content:
        return ()
    names = _by_lower_case(tuple(content))
    for wanted in (key.lower(),) if key else CAPTION_KEYS:
        name = names.get(wanted)
        if name is not None and (texts := _texts_in(content[name])):
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
    if not lines or (key and described) or lines == described:
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


def non_empty(texts: Sequence[str]) -> tuple[str, ...]:
    """Return the texts that are not blank, without surrounding space.

    Halves of surrogate pairs, which JSON can name and no file can hold, become question marks.
    """
    writable = [text if text.isascii() else _writable(text) for text in texts]
    return tuple([whole for text in writable if (whole := text.strip())])


def _writable(text: str) -> str:
    return text.encode(errors="replace").decode()


def lines_of(text: str) -> list[str]:
    """Return the lines of a text; they end at line feeds, with or without a carriage return."""
    return [line.removesuffix("\r") for line in text.split("\n")]


def decode_text(content: bytes) -> str:
    """Decode UTF-8 with or without a byte order mark, or UTF-16 with one.

    Bytes that are neither become U+FFFD.
    """
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return content.decode("utf-16", errors="replace")
    return content.removeprefix(codecs.BOM_UTF8).decode(errors="replace")


# --- files


def files_below(folder: Path) -> list[Path]:
    """Return the files in a folder and its sub-folders, linked ones included, sorted by path.

    There are none where there is no folder. Names that begin with a dot and ``__MACOSX`` are
    skipped: they are what macOS and other systems leave beside files.

    Raises:
        DataError: a sub-folder cannot be read.
    """
    if not folder.is_dir():
        return []
    found = sorted(_walk(folder), key=lambda path: path.relative_to(folder).parts)
    return [path for path in found if path.is_file()]


def _walk(folder: Path) -> Iterator[Path]:
    def fail(error: OSError) -> None:
        raise DataError(f"cannot read the folder {error.filename}: {error.strerror}") from error

    seen = set[str]()  # links may lead around in a circle
    for place, folders, names in os.walk(folder, followlinks=True, onerror=fail):
        real = os.path.realpath(place)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = [name for name in folders if not is_leftover(name)]
        yield from (Path(place, name) for name in names if not is_leftover(name))


def is_leftover(name: str) -> bool:
    """Whether a path inside a data set is no part of it: a hidden name, or what macOS leaves."""
    hidden = name.startswith(".") or "/." in name
    return hidden or ("__MACOSX" in name and "__MACOSX" in name.split("/"))


def is_about(name: str) -> bool:
    """Whether a text is about the data set instead of an image: README.txt, LICENSE.txt, …"""
    return name.rpartition("/")[2].partition(".")[0].lower() in _ABOUT
