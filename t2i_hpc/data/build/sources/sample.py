"""What every source gives: image files, their captions and classes, and what cannot be used.

A source reads captions and file names only; images are opened when their shard is made. A sample
that cannot be used (no caption, no image, a damaged tar) is given as well, with the reason, so that
it is listed, counted against ``max_rejected`` and summed up like an image that does not decode.

Several sources have captions in a text file for each image (:class:`Texts`): ``a.jpg`` has its
captions in ``a.txt``, one a line, or in ``a.json`` as img2dataset writes it. With a separate folder
of texts, ``species/a.jpg`` has them in ``TEXTS/species/a.txt``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from t2i_hpc.common.errors import DataError
from t2i_hpc.common.lazy_sequence import LazySequence
from t2i_hpc.data.images import IMAGE_SUFFIXES, Box
from t2i_hpc.data.sidecars import (
    LARGEST_CLASS,
    NO_CAPTION,
    NO_CLASS,
    NO_IMAGE,
    Description,
    Rules,
    UnfitSample,
    Value,
    decode_text,
    described,
    files_below,
    is_about,
)

if TYPE_CHECKING:
    from t2i_hpc.data.build.sources.webdataset_tars import TarGroups

_TEXTS = (".txt", ".json", ".cls")
_NOTHING = Description((), NO_CLASS, "", 0, {})
Files = dict[str, dict[str, Path]]  # by path without suffix, then by suffix in lower case
MISSING_IMAGE = "missing image file"
OUTSIDE = "image outside of its folder"
NOT_DOWNLOADED = "not downloaded by their status"
BY_FILTER = "left out by filter="
LEFT_OUT = (NOT_DOWNLOADED, BY_FILTER)  # kinds of unfit samples that are counted, not rejected
_FIRST_OWN_CLASS = 1 << 40


@dataclass(frozen=True, slots=True)
class SourceSample:
    """One image and what is known of it.

    Attributes:
        key: the image's name in its data set.
        path: the image file, or the tar that holds it.
        captions: one or more texts.
        class_id: class of the image; a running number where there are no classes.
        box: left, top, width, height of the object in pixels, where the image is to be cut.
        packed: where the image is in a tar.
        orientation: that of EXIF, from the description beside the image; 0: none is given.
        unfit: why the sample cannot be used; it is then only listed.
        source: what else is said of the image: url, licence, sizes, scores.
    """

    key: str
    path: Path
    captions: tuple[str, ...] = ()
    class_id: int = NO_CLASS
    box: Box | None = None
    packed: Packed | None = None
    orientation: int = 0
    unfit: Unfit | None = None
    source: Mapping[str, Value] | None = None

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


@dataclass(frozen=True, slots=True)
class StoredSource(SourceSample):
    """A sample whose image file is read already.

    Attributes:
        content: the file's bytes.
    """

    content: bytes = b""

    @property
    def size(self) -> int:
        """Bytes of the image file."""
        return len(self.content)

    def read(self) -> bytes:
        """Return the image file's bytes."""
        return self.content


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


@dataclass(frozen=True)
class SourceData:
    """What a source holds.

    Attributes:
        samples: all of them, those that cannot be used included, in the order of the source.
        tars: number of tars that were read, 0 where there are none.
        remarks: what else the user should know, a few words each.
        groups: tars that are read in groups, in place of `samples`.
    """

    samples: Sequence[SourceSample]
    tars: int = 0
    remarks: tuple[str, ...] = ()
    groups: TarGroups | None = None


def numbered(samples: Iterable[SourceSample]) -> list[SourceSample]:
    """Give a running class to samples without one, above the largest class that is given."""
    found = list(samples)
    first = 1 + max((sample.class_id for sample in found), default=NO_CLASS)
    running = iter(range(first, first + len(found)))
    return [
        replace(sample, class_id=next(running)) if sample.class_id == NO_CLASS else sample
        for sample in found
    ]


class AddressedSamples(LazySequence[SourceSample]):
    """Samples that are read one by one, by their numbers, when they are wanted.

    Nothing is listed, so a partition of 10⁹ samples takes the memory of one of 10⁵.

    Args:
        count: how many there are.

    Attributes:
        said: names of what the source says of its samples.
        digest: what all samples follow from; empty: :meth:`identity` says it of some.
    """

    said: frozenset[str] = frozenset()
    digest = ""

    def __init__(self, count: int) -> None:
        self._count = count
        self._chosen: npt.NDArray[np.int64] | None = None  # numbers in the source; None: all

    def __len__(self) -> int:
        return self._count

    def at(self, number: int) -> SourceSample:
        """Read a sample by its number among those that are taken."""
        return self.sample(number if self._chosen is None else int(self._chosen[number]))

    def __iter__(self) -> Iterator[SourceSample]:
        return (self[number] for number in range(self._count))

    def first(self, count: int | None) -> AddressedSamples:
        """Return the first samples alone; None: all."""
        found = copy(self)
        found._count = min(count or self._count, self._count)
        return found

    def where(self, takes: Callable[[str], bool], rule: str) -> AddressedSamples:
        """Return the samples whose keys are taken by `rule`; they are not read for it."""
        found = copy(self)
        taken = (number for number in range(self._count) if takes(self.key(number)))
        found._chosen = np.fromiter(taken, np.int64)
        found._count, found.digest = len(found._chosen), f"{self.digest} {rule}"
        return found

    def key(self, number: int) -> str:
        """Return a sample's key, where it follows from its number."""
        raise NotImplementedError

    def sample(self, number: int) -> SourceSample:
        """Return a sample by its number in the source."""
        raise NotImplementedError

    def texts(self, numbers: range) -> Iterator[str]:
        """Give the captions of some samples."""
        return (
            text
            for number in numbers
            if (sample := self[number]).unfit is None
            for text in sample.captions
        )

    def identity(self, numbers: range) -> list[object]:
        """Return what some samples follow from, where the whole has no digest."""
        raise NotImplementedError


class OwnSamples(LazySequence[SourceSample]):
    """Some of many samples under their numbers among all: what a partition keeps of a list.

    Args:
        samples: all of them; the others are let go.
        own: which are kept.
    """

    def __init__(self, samples: Sequence[SourceSample], own: range) -> None:
        self._count, self._own = len(samples), own
        self._samples = list(samples[own.start : own.stop])

    def __len__(self) -> int:
        return self._count

    def at(self, number: int) -> SourceSample:
        """Return a sample that is kept."""
        return self._samples[self._own.index(number)]


def class_of(given: object, number: int) -> int:
    """Return the class of an addressed sample: the given one, or one that no other sample has.

    Which one is the largest is not known before all are read, so own ones begin at 2⁴⁰.
    """
    if type(given) is int and 0 <= given < LARGEST_CLASS:
        return given
    return _FIRST_OWN_CLASS + number


# --- captions in text files


class Texts:
    """The text files of a folder, found by the name of the image that they belong to."""

    def __init__(self, folder: Path, rules: Rules) -> None:
        self.folder, self._rules = folder, rules
        self._files = by_stem(files_below(folder), folder, _TEXTS)

    def of(self, stem: str) -> tuple[Description, Unfit | None]:
        """Return the description of the image `stem`, and why it cannot be used, if so."""
        files = self._files.get(stem, {})
        if not {".txt", ".json"} & files.keys():
            expected = self.folder / f"{stem}.txt"
            return _NOTHING, Unfit(NO_CAPTION, f"there is no caption file {expected}")
        try:
            content = {suffix[1:]: path.read_bytes() for suffix, path in files.items()}
            return described(content, self._rules, content), None
        except UnfitSample as error:
            names = ", ".join(str(path) for path in files.values())
            return _NOTHING, Unfit(error.kind, f"{names}: {error.reason}")
        except OSError as error:
            reason = f"cannot read {error.filename}: {error.strerror}"
            return _NOTHING, Unfit(NO_CAPTION, reason)

    def all(self) -> list[str]:
        """Return the captions of all files, by path; files without any are skipped."""
        return [text for stem in self._files for text in self.of(stem)[0].captions]

    def without_image(self, stems: set[str]) -> list[SourceSample]:
        """Return caption files that belong to no image; JSON alone may be anything else."""
        return [
            SourceSample(
                f"{stem}.txt",
                files[".txt"],
                unfit=Unfit(NO_IMAGE, f"there is no image for the captions {files['.txt']}"),
            )
            for stem, files in self._files.items()
            if ".txt" in files and stem not in stems and not is_about(stem)
        ]


def by_stem(files: Sequence[Path], folder: Path, suffixes: Sequence[str]) -> Files:
    """Sort files of some kinds by what images and texts have in common: their path less suffix."""
    found: Files = {}
    for path in files:
        if path.suffix.lower() in suffixes:
            stem = path.relative_to(folder).with_suffix("").as_posix()
            found.setdefault(stem, {})[path.suffix.lower()] = path
    return found


def read_beside(images: Path, texts: Texts) -> list[SourceSample]:
    """Give all images of a folder, sorted by path, and the captions that have none.

    The key of an image is its path.
    """
    paths = [path for path in files_below(images) if path.suffix.lower() in IMAGE_SUFFIXES]
    samples, stems = list[SourceSample](), set[str]()
    for path in paths:
        name = path.relative_to(images)
        stem = name.with_suffix("").as_posix()
        stems.add(stem)
        given, unfit = texts.of(stem)
        samples.append(_sample(name.as_posix(), path, given, unfit))
    return samples + texts.without_image(stems)


def read_listed(images: Path, texts: Texts, keys: Sequence[str]) -> list[SourceSample]:
    """Give the images of a list of names without suffixes, in its order."""
    there = by_stem(files_below(images), images, IMAGE_SUFFIXES)
    samples = []
    for key in keys:
        path = next(iter(there.get(key, {}).values()), None)
        given, unfit = texts.of(key)
        if path is None:
            reason = f"there is no image {images / key}.jpg (or {', '.join(IMAGE_SUFFIXES)})"
            path, unfit = images / f"{key}.jpg", Unfit(MISSING_IMAGE, reason)
        samples.append(_sample(key, path, given, unfit))
    return samples


def _sample(key: str, path: Path, given: Description, unfit: Unfit | None) -> SourceSample:
    return SourceSample(
        key,
        path,
        given.captions,
        given.class_id,
        orientation=given.orientation,
        unfit=unfit,
        source=given.source or None,
    )


# --- files


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


def located(name: str, folder: Path, where: str) -> tuple[Path, Unfit | None]:
    """Return where the image is that a captions file names, and why it cannot be used, if so.

    Args:
        name: as written there, below `folder` or absolute.
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


def read_text(path: Path, holds: str) -> str:
    """Return a text file's content, see :func:`decode_text`.

    Raises:
        DataError: there is no such file.
    """
    try:
        return decode_text(path.read_bytes())
    except OSError as error:
        raise DataError(f"cannot read {path}, {holds}: {error.strerror}") from error


def refuse(names: Sequence[str], what: str, remedy: str) -> None:
    """Refuse a list of unfit things, if there are any, by their number and the first one.

    Raises:
        DataError: `names` is not empty.
    """
    if names:
        raise DataError(f"{len(names):,} {what}, the first is {names[0]}: {remedy}")
