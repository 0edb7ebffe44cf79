"""Captions as they lie beside images: in text files, one a line, or under a name in JSON.

The names are the same in every source. Lines end at line feeds alone: scraped captions hold
other characters that Python takes for ends of lines, such as U+0085 and U+2028.

What every source gives: image files, their captions and classes, and what cannot be used.

A source reads captions and file names only; images are opened by the writer. A sample that
cannot be used (no caption, no image, a damaged tar) is given as well, with the reason, so that
it is listed, counted against ``max_rejected`` and summed up like an image that does not decode.
"""

from __future__ import annotations

import codecs
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from t2i_hpc.common.errors import DataError
from t2i_hpc.data.images import SUFFIXES, Box

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


IMAGE_FORMATS_OF_SUFFIX = {
    ".jpeg": "jpeg",
    **{f".{suffix}": form for form, suffix in SUFFIXES.items()},
}
IMAGE_SUFFIXES = tuple(IMAGE_FORMATS_OF_SUFFIX)
NO_CLASS = -1

NO_CAPTION = "no caption"
NO_IMAGE = "no image"
MISSING_IMAGE = "missing image file"
OUTSIDE = "image outside of its folder"
_ABOUT = ("readme", "license", "licence", "copying", "notice", "changelog", "citation", "authors")


@dataclass(frozen=True, slots=True)
class Packed:
    """An image file inside a tar: its first byte there and its size in bytes."""

    offset: int
    count: int


@dataclass(frozen=True, slots=True)
class Unfit:
    """Why a sample cannot be used: what it is counted as, and a sentence."""

    kind: str
    reason: str


@dataclass(frozen=True, slots=True)
class SourceSample:
    """One image and what is said of it.

    Attributes:
        key: the image's name in its data set.
        path: the image file, or the tar that holds it.
        captions: one or more texts.
        class_id: class of the image; a running number where there are no classes.
        box: left, top, width, height of the object in pixels, where the image is to be cut.
        packed: where the image lies in a tar.
        orientation: that of EXIF, as the description beside the image tells it; 0: it does not.
        unfit: why the sample cannot be used; it is then only listed.
    """

    key: str
    path: Path
    captions: tuple[str, ...] = ()
    class_id: int = NO_CLASS
    box: Box | None = None
    packed: Packed | None = None
    orientation: int = 0
    unfit: Unfit | None = None

    @property
    def name(self) -> str:
        """What the image is called in messages."""
        return str(self.path) if self.packed is None else f"{self.key} in {self.path}"

    @property
    def size(self) -> int:
        """Bytes of the image file."""
        return self.path.stat().st_size if self.packed is None else self.packed.count

    def read(self) -> bytes:
        """Return the image file's bytes.

        Raises:
            DataError: the file cannot be read.
        """
        try:
            with self.path.open("rb") as stream:
                if self.packed is None:
                    return stream.read()
                stream.seek(self.packed.offset)
                return stream.read(self.packed.count)
        except OSError as error:
            raise DataError(f"cannot read the image {self.path}: {error.strerror}") from error


@dataclass(frozen=True)
class SourceData:
    """What a source holds.

    Attributes:
        samples: all of them, those that cannot be used included, in the order of the source.
        tars: number of tars that were read, 0 where there are none.
        remarks: what else the user should know, a few words each.
    """

    samples: Sequence[SourceSample]
    tars: int = 0
    remarks: tuple[str, ...] = ()


def numbered(samples: Iterable[SourceSample]) -> list[SourceSample]:
    """Give a running class to samples without one, above the largest class that is given."""
    found = list(samples)
    first = 1 + max((sample.class_id for sample in found), default=NO_CLASS)
    running = iter(range(first, first + len(found)))
    return [
        replace(sample, class_id=next(running)) if sample.class_id == NO_CLASS else sample
        for sample in found
    ]


def folder_at(path: str, key: str, holds: str) -> Path:
    """Return an existing folder.

    Raises:
        DataError: the setting `key` is empty or names no folder.
    """
    if not path:
        raise DataError(f"{key}= is missing: name {holds}")
    if not Path(path).is_dir():
        raise DataError(f"there is no folder {path}: {key}= must name {holds}")
    return Path(path)


def files_below(folder: Path) -> list[Path]:
    """Return the files in a folder and its sub-folders, linked ones included, sorted by path.

    There are none where there is no folder. Names that begin with a dot and ``__MACOSX`` are
    passed over: they are what macOS and other systems leave beside files.

    Raises:
        DataError: a sub-folder cannot be read.
    """
    if not folder.is_dir():
        return []
    found = sorted(_walk(folder), key=lambda path: path.relative_to(folder).parts)
    return [path for path in found if path.is_file()]


def is_leftover(name: str) -> bool:
    """Whether a path inside a data set is no part of it: a hidden name, or what macOS leaves."""
    parts = PurePosixPath(name).parts
    return any(part.startswith(".") or part == "__MACOSX" for part in parts)


def is_about(name: str) -> bool:
    """Whether a text tells of the data set instead of an image: README.txt, LICENSE.txt, …"""
    return PurePosixPath(name).name.partition(".")[0].lower() in _ABOUT


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


def located(name: str, folder: Path, where: str) -> tuple[Path, Unfit | None]:
    """Return where the image lies that a captions file names, and why it cannot be used, if so.

    Args:
        name: as it stands there, below `folder` or absolute.
        folder: that of the images.
        where: what names it, for the reason.
    """
    path = PurePosixPath(name)
    if path.is_absolute() and Path(name).is_relative_to(folder.absolute()):
        path = PurePosixPath(Path(name).relative_to(folder.absolute()))
    if path.is_absolute() or ".." in path.parts or not path.parts:
        reason = f"{where} names {name!r}, outside the folder of images {folder}"
        return folder, Unfit(OUTSIDE, f"{reason}: use a name inside it")
    place = folder / path
    if not place.is_file():
        return place, Unfit(MISSING_IMAGE, f"{where} names {name}, which is not in {folder}")
    return place, None


def refuse(names: Sequence[str], what: str, remedy: str) -> None:
    """Refuse a list of unfit things, if there are any, by their number and the first one.

    Raises:
        DataError: `names` is not empty.
    """
    if names:
        raise DataError(f"{len(names):,} {what}, the first is {names[0]}: {remedy}")
