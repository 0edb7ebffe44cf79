"""Tars that others made (img2dataset, webdataset's writers): their samples, packed anew.

A split of ours has one ``<key>.json`` with captions, class and key beside each image, in the
same tar. Tars of others have captions in ``.txt`` files or in JSON of another shape
(:mod:`t2i_hpc.data.sidecars`), so an index alone cannot describe them. Hence the samples are packed
anew, scaled as those of every source; with ``format=original`` the image's bytes are copied as they
are. What cannot be used is listed with its reason.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import IO

from t2i_hpc.common.errors import DataError
from t2i_hpc.config.data import ShardsConfig
from t2i_hpc.data.build.sources.sample import (
    Packed,
    SourceData,
    SourceSample,
    Unfit,
    folder_at,
    numbered,
)
from t2i_hpc.data.format.tar_headers import Member
from t2i_hpc.data.format.tars import LARGEST_IMAGE, LARGEST_TEXT, compression_of, scan
from t2i_hpc.data.sidecars import (
    Rules,
    UnfitSample,
    described,
    files_below,
    image_of,
    is_sample,
    split_name,
    texts_of,
)

DAMAGED_TAR = "damaged tar"
UNFIT_MEMBER = "member that is no plain file"
TWICE = "member that is there twice"
OUTSIZED = "outsized member"
_COMPRESSED = (".gz", ".tgz", ".bz2", ".tbz2", ".xz", ".txz", ".zst", ".tzst", ".lz4", ".zip")
_UNPACK = {"gzip": "gunzip", "bzip2": "bunzip2", "xz": "unxz", "zstd": "unzstd --rm"}
_Members = dict[str, Member]


def read_webdataset(config: ShardsConfig) -> SourceData:
    """Read the captions of all tars in a folder and its sub-folders, in the order of their paths.

    The key of a sample is ``<path of the tar>/<name in the tar>``, since names are often used
    again in each tar.

    Raises:
        DataError: there are no tars, or some are compressed.
    """
    folder = folder_at(config.images, "images", "a folder of tars")
    if config.captions:
        raise DataError("captions= does not belong to source=webdataset: captions are in the tars")
    paths = tars_below(folder)
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


def tars_below(folder: Path) -> list[Path]:
    """Return the tars in a folder and its sub-folders, sorted by path.

    Raises:
        DataError: there are none, or some are compressed.
    """
    files = files_below(folder)
    _refuse_compressed(files, folder)
    paths = [path for path in files if path.suffix.lower() == ".tar"]
    if not paths:
        raise DataError(f"{folder} has no .tar files: name the folder that holds the tars")
    return paths


def captions_of_tar(path: Path) -> Iterator[str]:
    """Give the captions of a tar's samples."""
    for sample in _read_tar(path, path.parent, Rules(), []):
        if sample.unfit is None:
            yield from sample.captions


def _refuse_compressed(files: list[Path], folder: Path) -> None:
    """Refuse what would be left out in silence, before anything is read.

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
        yield SourceSample(f"{name}/{member}", path, unfit=Unfit(UNFIT_MEMBER, reason))
    if found.problem:
        reason = f"{found.problem}; {len(samples):,} samples before that are taken"
        yield SourceSample(name, path, unfit=Unfit(DAMAGED_TAR, reason))


def _grouped(
    members: list[Member],
) -> tuple[dict[str, list[tuple[str, Member]]], str]:
    """Return the members of each sample with their extensions, and the key of the last one."""
    samples: dict[str, list[tuple[str, Member]]] = {}
    key = ""
    for member in members:
        key, extension = split_name(member.name)
        if extension:
            samples.setdefault(key, []).append((extension, member))
    return samples, key


def _sample(
    key: str,
    found: list[tuple[str, Member]],
    path: Path,
    stream: IO[bytes],
    rules: Rules,
) -> SourceSample:
    try:
        members = _by_extension(found)
        image = members[image_of(members, rules)]
        texts = texts_of(members, rules)
        refuse_outsized(image, LARGEST_IMAGE)
        for extension in texts:
            refuse_outsized(members[extension], LARGEST_TEXT)
        given = described({name: _read(stream, members[name]) for name in texts}, rules, members)
    except UnfitSample as error:
        unfit = Unfit(error.kind, f"{path}, sample {key.rpartition('/')[2]}: {error.reason}")
        return SourceSample(key, path, unfit=unfit)
    packed = Packed(image.offset_data, image.size)
    return SourceSample(
        key,
        path,
        given.captions,
        given.class_id,
        packed=packed,
        orientation=given.orientation,
        source=given.source or None,
    )


def _by_extension(found: list[tuple[str, Member]]) -> _Members:
    members: _Members = {}
    for extension, member in found:
        if extension in members:
            raise UnfitSample(TWICE, f"it holds {member.name!r} twice: rename one")
        members[extension] = member
    return members


def refuse_outsized(member: Member, largest: int) -> None:
    """Refuse a member of more bytes than are read.

    Raises:
        UnfitSample: it is larger.
    """
    if member.size > largest:
        raise UnfitSample(
            OUTSIZED,
            f"{member.name!r} has {member.size:,} bytes, more than the {largest:,} that are read",
        )


def _read(stream: IO[bytes], member: Member) -> bytes:
    stream.seek(member.offset_data)
    return stream.read(member.size)
