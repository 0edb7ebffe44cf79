"""A sample of a tar that others made: which of its members is the image, which the captions.

The rule for names is webdataset's, for every reader: all members whose path is the same up to
the first dot after the last slash are one sample, and the rest of the name says what each is.

Tars that others made (img2dataset, webdataset's writers): their samples, packed anew.

A split of ours has one ``<key>.json`` with captions, class and key beside each image, in the
same tar. Tars of others have captions in ``.txt`` files or in JSON of another shape, so an index
alone cannot describe them. Hence the samples are packed anew, scaled as those of every source;
with ``format=original`` the image's bytes are copied as they are.

Captions are, one a line, those of ``.txt``, else those in ``.json``; a class is a whole number
under ``class`` in the JSON, or in ``.cls``. What cannot be used is listed with its reason.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

from t2i_hpc.common.errors import DataError
from t2i_hpc.config.data import ShardsConfig
from t2i_hpc.data.build.sources.sample import (
    IMAGE_FORMATS_OF_SUFFIX,
    NAMES,
    NO_CAPTION,
    NO_CLASS,
    NO_IMAGE,
    Packed,
    SourceData,
    SourceSample,
    Unfit,
    captions_in,
    captions_of,
    decode_text,
    files_below,
    folder_at,
    is_about,
    is_leftover,
    numbered,
)
from t2i_hpc.data.format.tar_members import LARGEST_IMAGE, LARGEST_TEXT, compression_of, scan

UNREADABLE = "unreadable description"
_LARGEST_CLASS = 1 << 62
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
    """Where image and captions stand in a sample, as far as a user says so.

    Attributes:
        image: extension of the image, such as ``input.jpg``; empty: the one of an image format.
        caption: extension of the captions, such as ``syn.json``; empty: ``txt``, then ``json``.
        caption_key: name of the captions in JSON; empty: one of the usual names.
    """

    image: str = ""
    caption: str = ""
    caption_key: str = ""


@dataclass(frozen=True)
class Description:
    """What the members beside an image say of it.

    Attributes:
        captions: one or more texts.
        class_id: NO_CLASS where none is given.
        key: the image's name in its data set; empty: none is given.
        orientation: that of EXIF which the image had before it was encoded anew; 0: unknown.
    """

    captions: tuple[str, ...]
    class_id: int
    key: str
    orientation: int


def split_name(name: str) -> tuple[str, str]:
    """Return the key of a member's sample and the member's extension, in lower case.

    Both are empty where the name has no extension or belongs to no sample: it begins with a
    dot, as macOS's leftovers do, or tells of the data set, as README.txt does.
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
    """Whether a member of this extension may say something of a sample."""
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
    """Read what lies beside an image.

    Args:
        members: content of the sample's text members, by extension.
        rules: where captions stand.
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
    )


def texts_of(extensions: Collection[str], rules: Rules) -> list[str]:
    """Return the extensions of the members that :func:`described` reads."""
    return [one for one in extensions if one in ("txt", "json", "cls", rules.caption.lower())]


def orientation_in(content: Mapping[str, Any]) -> int:
    """Return the orientation that img2dataset notes of a photograph's EXIF, 0 if it notes none."""
    exif = content.get("exif")
    if isinstance(exif, str):
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
    name = rules.caption.lower()
    if name and name not in members:
        raise UnfitSample(NO_CAPTION, f"it has no member .{rules.caption}, {_holds(extensions)}")
    if _suffix(name) == ".json":
        found = captions_in(_json(members[name], f".{name}"), rules.caption_key)
    elif name:
        found = captions_of(decode_text(members[name]), content)
    else:
        found = captions_of(decode_text(members.get("txt", b"")), content, rules.caption_key)
    if not found:
        named = f"{rules.caption_key!r}" if rules.caption_key else NAMES
        raise UnfitSample(
            NO_CAPTION,
            f"it has no caption: a .txt, or {named} in .json{_where_else(extensions, rules)}",
        )
    return found


def _where_else(extensions: Collection[str], rules: Rules) -> str:
    """Say where captions may stand instead, for the reason."""
    if not rules.caption:
        others = [one for one in extensions if _suffix(one) in (".txt", ".json") and "." in one]
        if others:
            return f"; it holds .{', .'.join(others)}: name one with caption_member={others[0]}"
    if "txt" in extensions or "json" in extensions:
        return "; its text is empty" if "txt" in extensions else "; caption_key= takes other names"
    return ""


def _json(content: bytes | None, name: str) -> dict[str, Any]:
    try:
        found = json.loads(decode_text(content)) if content else {}
    except RecursionError:
        raise UnfitSample(UNREADABLE, f"its {name} is nested too deep") from None
    except ValueError as error:
        raise UnfitSample(UNREADABLE, f"its {name} is not readable JSON ({error})") from error
    return found if isinstance(found, dict) else {}


def _class(given: object, member: bytes | None) -> int:
    """Return the class of ``class`` in the JSON, else that of webdataset's ``.cls``."""
    if type(given) is int and 0 <= given < _LARGEST_CLASS:
        return given
    text = decode_text(member or b"").strip()
    if not text:
        return NO_CLASS
    if not (text.isascii() and text.isdecimal()) or int(text) >= _LARGEST_CLASS:
        raise UnfitSample(UNREADABLE, f"its .cls is {text[:40]!r}, no whole number")
    return int(text)


def _holds(extensions: Collection[str]) -> str:
    return f"it holds {', '.join(f'.{one}' for one in extensions)}"


def _suffix(extension: str) -> str:
    return PurePosixPath(f"a.{extension}").suffix.lower()


DAMAGED_TAR = "damaged tar"
_UNFIT_MEMBER = "member that is no plain file"
_TWICE = "member that is there twice"
_OUTSIZED = "outsized member"
_COMPRESSED = (".gz", ".tgz", ".bz2", ".tbz2", ".xz", ".txz", ".zst", ".tzst", ".lz4", ".zip")
_UNPACK = {"gzip": "gunzip", "bzip2": "bunzip2", "xz": "unxz", "zstd": "unzstd --rm"}
_Members = dict[str, tarfile.TarInfo]


def read_foreign(config: ShardsConfig) -> SourceData:
    """Read the captions of all tars in a folder and its sub-folders, in the order of their paths.

    The key of a sample is ``<path of the tar>/<name in the tar>``, since names are often used
    again in each tar.

    Raises:
        DataError: there are no tars, or some are compressed.
    """
    folder = folder_at(config.images, "images", "a folder of tars")
    if config.captions:
        raise DataError("captions= does not belong to source=webdataset: captions are in the tars")
    files = files_below(folder)
    _refuse_compressed(files, folder)
    paths = [path for path in files if path.suffix.lower() == ".tar"]
    if not paths:
        raise DataError(f"{folder} has no .tar files: name the folder that holds the tars")
    rules = Rules(config.image_member, config.caption_member, config.caption_key)
    samples, without_end = list[SourceSample](), list[Path]()
    for path in paths:
        samples += _read_tar(path, folder, rules, without_end)
    if not samples:
        raise DataError(f"the tars of {folder} hold no images: name another folder")
    remarks = []
    if without_end:
        remarks.append(
            f"{len(without_end):,} tars have no end mark, as if cut between two files; "
            f"the first is {without_end[0]}"
        )
    return SourceData(numbered(samples), len(paths), tuple(remarks))


def _refuse_compressed(files: list[Path], folder: Path) -> None:
    """Refuse what would be left out without a word, before anything is read.

    Raises:
        DataError: there are compressed tars; names the first and how to unpack it.
    """
    named = [path for path in files if path.suffix.lower() in _COMPRESSED]
    found = [path for path in named if _is_tar_name(path)]
    found += [path for path in files if path.suffix.lower() == ".tar" and compression_of(path)]
    if found:
        kind = compression_of(found[0]) or found[0].suffix[1:]
        unpack = _UNPACK.get(kind, "unpack")
        raise DataError(
            f"{len(found):,} tars of {folder} are compressed, the first is {found[0]} ({kind}), so "
            f"no image can be read by its place: run {unpack} on them first"
        )


def _is_tar_name(path: Path) -> bool:
    suffix = path.suffix.lower()
    return suffix.startswith(".t") or path.stem.lower().endswith(".tar")


def _read_tar(
    path: Path, folder: Path, rules: Rules, without_end: list[Path]
) -> Iterator[SourceSample]:
    name = path.relative_to(folder).with_suffix("").as_posix()
    found = scan(path)
    samples, last = _grouped(found.members)
    if found.problem:  # one sample may lack members
        samples.pop(split_name(found.cut)[0] if found.cut else last, None)
    elif not found.ended:
        without_end.append(path)
    with path.open("rb") as stream:
        for key, members in samples.items():
            if is_sample([extension for extension, _ in members], rules):
                yield _sample(f"{name}/{key}", members, path, stream, rules)
    for member, reason in found.unfit:
        yield SourceSample(f"{name}/{member}", path, unfit=Unfit(_UNFIT_MEMBER, reason))
    if found.problem:
        reason = f"{found.problem}; {len(samples):,} samples before that are taken"
        yield SourceSample(name, path, unfit=Unfit(DAMAGED_TAR, reason))


def _grouped(
    members: list[tarfile.TarInfo],
) -> tuple[dict[str, list[tuple[str, tarfile.TarInfo]]], str]:
    """Return the members of each sample with their extensions, and the key of the last one."""
    samples: dict[str, list[tuple[str, tarfile.TarInfo]]] = {}
    key = ""
    for member in members:
        key, extension = split_name(member.name)
        if extension:
            samples.setdefault(key, []).append((extension, member))
    return samples, key


def _sample(
    key: str,
    found: list[tuple[str, tarfile.TarInfo]],
    path: Path,
    stream: IO[bytes],
    rules: Rules,
) -> SourceSample:
    try:
        members = _by_extension(found)
        image = members[image_of(members, rules)]
        texts = texts_of(members, rules)
        _refuse_outsized(image, LARGEST_IMAGE)
        for extension in texts:
            _refuse_outsized(members[extension], LARGEST_TEXT)
        told = described({name: _read(stream, members[name]) for name in texts}, rules, members)
    except UnfitSample as error:
        unfit = Unfit(error.kind, f"{path}, sample {key.rpartition('/')[2]}: {error.reason}")
        return SourceSample(key, path, unfit=unfit)
    packed = Packed(image.offset_data, image.size)
    return SourceSample(
        key, path, told.captions, told.class_id, packed=packed, orientation=told.orientation
    )


def _by_extension(found: list[tuple[str, tarfile.TarInfo]]) -> _Members:
    members: _Members = {}
    for extension, member in found:
        if extension in members:
            raise UnfitSample(_TWICE, f"it holds {member.name!r} twice: rename one")
        members[extension] = member
    return members


def _refuse_outsized(member: tarfile.TarInfo, largest: int) -> None:
    if member.size > largest:
        raise UnfitSample(
            _OUTSIZED,
            f"{member.name!r} has {member.size:,} bytes, more than the {largest:,} that are read",
        )


def _read(stream: IO[bytes], member: tarfile.TarInfo) -> bytes:
    stream.seek(member.offset_data)
    return stream.read(member.size)
