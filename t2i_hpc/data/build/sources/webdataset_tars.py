"""Tars that others made (img2dataset, webdataset's writers): their samples, packed anew.

A split of ours has one ``<key>.json`` with captions, class and key beside each image, in the
same tar. Tars of others have captions in ``.txt`` files or in JSON of another shape
(:mod:`t2i_hpc.data.sidecars`), so an index alone cannot describe them. Hence the samples are packed
anew, scaled as those of every source; with ``format=original`` the image's bytes are copied as they
are. What cannot be used is listed with its reason. Nobody knows how many samples a tar holds before
it is read, so tars become shards in groups, which partitions deal out among them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

from t2i_hpc.common.errors import DataError
from t2i_hpc.config.data import ShardsConfig
from t2i_hpc.data.build.sources.sample import (
    Packed,
    SourceData,
    SourceSample,
    Unfit,
    class_of,
    folder_at,
)
from t2i_hpc.data.format.tar_headers import Member
from t2i_hpc.data.format.tars import (
    LARGEST_IMAGE,
    LARGEST_TEXT,
    MOST_MEMBERS,
    compression_of,
    scan,
)
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

GROUP_BYTES = 256 << 20  # of tars that are read together: those of small sets are one group
DAMAGED_TAR = "damaged tar"
UNFIT_MEMBER = "member that is no plain file"
TWICE = "member that is there twice"
OUTSIZED = "outsized member"
_COMPRESSED = (".gz", ".tgz", ".bz2", ".tbz2", ".xz", ".txz", ".zst", ".tzst", ".lz4", ".zip")
_UNPACK = {"gzip": "gunzip", "bzip2": "bunzip2", "xz": "unxz", "zstd": "unzstd --rm"}
_Members = dict[str, Member]


def read_webdataset(config: ShardsConfig) -> SourceData:
    """List the tars of a folder and its sub-folders, in the order of their paths; none is opened.

    The key of a sample is ``<path of the tar>/<name in the tar>``, since names are often used
    again in each tar.

    Raises:
        DataError: there are no tars, or some are compressed by their names.
    """
    folder = folder_at(config.images, "images", "a folder of tars")
    if config.captions:
        raise DataError("captions= does not belong to source=webdataset: captions are in the tars")
    paths = tars_below(folder)
    rules = Rules(config.image_member, config.caption_member, config.caption_key)
    # Which samples are the first is known by reading all tars before them.
    groups = [range(len(paths))] if config.limit else _groups(paths)
    most = 0 if config.test_fraction else config.limit or 0
    return SourceData((), len(paths), groups=TarGroups(folder, paths, rules, groups, most))


def _groups(paths: Sequence[Path]) -> list[range]:
    """Cut the list of tars: a group ends with the tar by which it is large enough."""
    found, begin, size = list[range](), 0, 0
    for number, path in enumerate(paths):
        size += path.stat().st_size
        if size >= GROUP_BYTES:
            found.append(range(begin, number + 1))
            begin, size = number + 1, 0
    return [*found, range(begin, len(paths))] if begin < len(paths) else found


@dataclass(frozen=True)
class TarGroups:
    """Tars in groups, each of which is read on its own and becomes shards of its own.

    Groups follow from names and sizes alone, so a partition reads none but its own, and the shards
    are the same however many partitions there are.

    Attributes:
        folder, paths: the tars.
        rules: which members are image and captions.
        groups: numbers of the tars of each group.
        most: how many samples are enough; 0: all are wanted.
    """

    folder: Path
    paths: Sequence[Path]
    rules: Rules
    groups: Sequence[range]
    most: int = 0

    def __len__(self) -> int:
        return len(self.groups)

    def states(self, group: int) -> list[list[object]]:
        """Return name, size and time of the last change of each tar of a group."""
        found = [(self.paths[tar], self.paths[tar].stat()) for tar in self.groups[group]]
        return [
            [path.relative_to(self.folder).as_posix(), state.st_size, state.st_mtime_ns]
            for path, state in found
        ]

    def read(self, group: int) -> TarGroup:
        """Read the captions of a group's tars.

        Raises:
            DataError: some of them are compressed.
        """
        paths = [self.paths[tar] for tar in self.groups[group]]
        refuse_compressed(paths, self.folder)
        samples, without_end = list[SourceSample](), list[Path]()
        for tar, path in zip(self.groups[group], paths, strict=True):
            for place, sample in enumerate(_read_tar(path, self.folder, self.rules, without_end)):
                own = class_of(sample.class_id, tar * MOST_MEMBERS + place)
                samples.append(replace(sample, class_id=own))
            if self.most and len(samples) >= self.most:
                break
        return TarGroup(samples, [str(path) for path in without_end])


@dataclass(frozen=True)
class TarGroup:
    """The samples of some tars, and which of these have no end mark."""

    samples: list[SourceSample]
    without_end: list[str]


def tars_below(folder: Path) -> list[Path]:
    """Return the tars in a folder and its sub-folders, sorted by path; none is opened.

    Raises:
        DataError: there are none, or some are compressed by their names.
    """
    files = files_below(folder)
    named = [path for path in files if path.suffix.lower() in _COMPRESSED and _is_tar_name(path)]
    _refuse_compressed(named, folder)
    paths = [path for path in files if path.suffix.lower() == ".tar"]
    if not paths:
        raise DataError(f"{folder} has no .tar files: name the folder that holds the tars")
    return paths


def captions_of_tar(path: Path) -> Iterator[str]:
    """Give the captions of a tar's samples."""
    for sample in _read_tar(path, path.parent, Rules(), []):
        if sample.unfit is None:
            yield from sample.captions


def refuse_compressed(tars: Sequence[Path], folder: Path) -> None:
    """Refuse what would be left out as damaged, by the first bytes of some tars.

    Raises:
        DataError: there are compressed ones; names the first and how to unpack it.
    """
    _refuse_compressed([path for path in tars if compression_of(path)], folder)


def _refuse_compressed(found: Sequence[Path], folder: Path) -> None:
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
