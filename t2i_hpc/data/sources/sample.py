"""What every source gives: an image file, its captions, its class; and the shared refusals.

A source reads captions and file names only; images are opened by the writer. Everything that
does not fit is refused here, before the first image is converted.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from t2i_hpc.common.errors import DataError
from t2i_hpc.data.images import SUFFIXES, Box

IMAGE_FORMATS_OF_SUFFIX = {
    ".jpeg": "jpeg",
    **{f".{suffix}": form for form, suffix in SUFFIXES.items()},
}
IMAGE_SUFFIXES = tuple(IMAGE_FORMATS_OF_SUFFIX)


@dataclass(frozen=True)
class Packed:
    """An image file inside a tar: its first byte there and its size in bytes."""

    offset: int
    count: int


@dataclass(frozen=True)
class SourceSample:
    """One image and what is said of it.

    Attributes:
        key: the image's name in its data set.
        path: the image file, or the tar that holds it.
        captions: one or more texts.
        class_id: class of the image; a running number where there are no classes.
        box: left, top, width, height of the object in pixels, where the image is to be cut.
        packed: where the image lies in a tar; it is then stored byte for byte.
    """

    key: str
    path: Path
    captions: tuple[str, ...]
    class_id: int
    box: Box | None = None
    packed: Packed | None = None

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


def read_text(path: Path, holds: str) -> str:
    """Return a text file's content; bytes that are not UTF-8 become U+FFFD.

    Raises:
        DataError: there is no such file.
    """
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise DataError(f"cannot read {path}, {holds}: {error.strerror}") from error


def read_captions_folder(folder: Path) -> list[str]:
    """Return all captions of a folder of ``.txt`` files, one a line, by path.

    Raises:
        DataError: there are none, or a file cannot be read.
    """
    paths = sorted(path for path in folder.rglob("*.txt") if path.is_file())
    texts = [read_text(path, "a caption file").splitlines() for path in paths]
    captions = [text for lines in texts for text in non_empty(lines)]
    if not captions:
        raise DataError(f"{folder} holds no captions: name a folder of .txt files, one a line")
    return captions


def read_captions_beside(
    folder: Path, names: Sequence[str], remedy: str
) -> dict[str, tuple[str, ...]]:
    """Return the captions of images by name: ``<folder>/<name without suffix>.txt`` of each.

    Raises:
        DataError: a file is missing or empty; says `remedy` for the former.
    """
    paths = {name: folder / f"{name}.txt" for name in names}
    absent = [name for name, path in paths.items() if not path.is_file()]
    refuse(absent, f"of {len(names):,} images have no caption file in {folder}", remedy)
    captions = {
        name: non_empty(read_text(path, "a caption file").splitlines())
        for name, path in paths.items()
    }
    silent = [name for name, lines in captions.items() if not lines]
    refuse(silent, f"images have an empty caption file in {folder}", "add captions")
    return captions


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


def non_empty(texts: Sequence[str]) -> tuple[str, ...]:
    """Return the texts that say something, without surrounding space.

    Halves of surrogate pairs, which JSON can name and no file can hold, become question marks.
    """
    whole = (text.encode(errors="replace").decode() for text in texts)
    return tuple(text.strip() for text in whole if text.strip())


def captions_in(content: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the captions in the description that lies beside an image in a tar of others.

    They stand under ``captions``, ``caption`` or ``text``, as a list or as one text.
    """
    values = (content.get(name) for name in ("captions", "caption", "text"))
    found: Any = next((value for value in values if value), [])
    texts = found if isinstance(found, list) else [found]
    return non_empty([text for text in texts if isinstance(text, str)])


def refuse(names: Sequence[str], what: str, remedy: str) -> None:
    """Refuse a list of unfit things, if there are any, by their number and the first one.

    Raises:
        DataError: `names` is not empty.
    """
    if names:
        raise DataError(f"{len(names):,} {what}, the first is {names[0]}: {remedy}")


def refuse_outside(name: str, where: str) -> None:
    """Refuse a file name that leads out of its folder.

    Raises:
        DataError: the name is absolute or climbs up.
    """
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        raise DataError(f"{where} names {name}, outside the folder of images: use a name inside it")


def refuse_missing_images(paths: Mapping[str, Path], where: str) -> None:
    """Refuse captions whose image files are not there."""
    missing = [name for name, path in paths.items() if not path.is_file()]
    refuse(
        missing,
        f"of {len(paths):,} images with captions are not in {where}",
        "captions and images must be of the same data set and complete",
    )
