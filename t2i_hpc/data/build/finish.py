"""From shards that are done to a split: tables, manifest, vocabulary, and its name.

Everything here can be repeated after an interruption; the renaming of the folder is last.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from t2i_hpc.common.errors import DataError
from t2i_hpc.common.files import fsync_folder, write_text
from t2i_hpc.data.build.shard import Rejection, ShardRecord, record_of, rows_of
from t2i_hpc.data.build.sources.sample import LEFT_OUT
from t2i_hpc.data.build.sources.webdataset_tars import DAMAGED_TAR
from t2i_hpc.data.build.workspace import GROUP, UNKNOWN, Build, Workspace, unmade
from t2i_hpc.data.captions import Vocabulary
from t2i_hpc.data.format.manifest import MANIFEST, VOCABULARY, Manifest
from t2i_hpc.data.format.outline import MOST, OUTLINE
from t2i_hpc.data.format.tables import INDEX, SHARDS, Index, Shard, save_tables, shard_name

REJECTED = "rejected.jsonl"
_Record = TypeVar("_Record")


@dataclass(frozen=True)
class FinishedSplit:
    """What a build ends with, whether samples were copied or stay where they lie.

    Attributes:
        manifest: what it holds.
        kinds: how many samples were left out, by the kind of reason.
        vocabulary: size of the folder's vocabulary.
        tars: number of tars of the source, 0 where it has none.
        remarks: what else the user should know.
    """

    manifest: Manifest
    kinds: Counter[str]
    vocabulary: int
    tars: int = 0
    remarks: Sequence[str] = ()

    @property
    def rejected(self) -> int:
        """Number of samples that were left out."""
        return self.kinds.total()

    def __str__(self) -> str:
        folder, said = self.manifest.folder, [*self.facts(), *self.remarks]
        if self.rejected:
            listed = folder / REJECTED
            said.append(f"{self.rejected:,} rejected ({summed_up(self.kinds)}), see {listed}")
        return f"{folder}: {'; '.join(said)}"

    def facts(self) -> list[str]:
        """Return what was made, a clause each."""
        raise NotImplementedError


@dataclass(frozen=True)
class BuiltSplit(FinishedSplit):
    """A split that was built.

    Attributes:
        small: images below the size asked for, which are kept as they are.
        left_out: how many samples were left out for which reason that rejects nothing.
    """

    small: int = 0
    left_out: Mapping[str, int] = field(default_factory=dict)

    def facts(self) -> list[str]:
        """Return samples, shards, bytes, words, and images that are too small."""
        manifest = self.manifest
        said = [
            f"{manifest.sample_count:,} samples in {manifest.shard_count:,} shards, "
            f"{manifest.bytes:,} bytes",
            f"vocabulary of {self.vocabulary:,} words",
        ]
        if self.tars:
            said.insert(1, f"from {self.tars:,} tars")
        if self.small:
            size = f"size={manifest.size} px"
            said.append(f"{self.small:,} images are smaller than {size} and kept as they are")
        return said + [f"{count:,} {reason}" for reason, count in self.left_out.items() if count]


@dataclass(frozen=True)
class _Made:
    """A shard that is done: its number in the source, its number in the split, its record."""

    source: int
    number: int
    record: ShardRecord


def finish(workspace: Workspace, build: Build) -> BuiltSplit:
    """Make the split of shards that are all done.

    A shard whose samples are all rejected is left out and the next ones move up, so that the
    numbers of shards have no gap.

    Raises:
        DataError: shards are missing, too many images were rejected, or the folder's
            vocabulary has other words.
    """
    by_number = records_of(workspace, build, record_of)
    records = list(by_number.values())
    rejected = [one for record in records for one in record.rejected]
    refuse_rejected(workspace, build, rejected)
    filled = [(source, record) for source, record in by_number.items() if record.count]
    if not filled:
        raise DataError(f"none of the {build.samples:,} samples can be used: {_first(rejected)}")
    made = [_Made(source, number, record) for number, (source, record) in enumerate(filled)]
    size = publish_vocabulary(workspace)
    _write(workspace, build, made, rejected)
    _move_up(workspace, made)
    _clear(workspace, made, rejected)
    fsync_folder(workspace.split)
    workspace.split.rename(workspace.target)
    fsync_folder(workspace.target.parent)
    shutil.rmtree(workspace.folder, ignore_errors=True)
    small = sum(record.small for record in records)
    kinds = Counter(one["kind"] for one in rejected)
    manifest = Manifest.load(workspace.target)
    left_out = {kind: sum(one.left_out.get(kind, 0) for one in records) for kind in LEFT_OUT}
    return BuiltSplit(
        manifest, kinds, size, build.tars, build.remarks, small=small, left_out=left_out
    )


def refuse_rejected(workspace: Workspace, build: Build, rejected: Sequence[Rejection]) -> None:
    """Refuse too many rejected samples, after listing them in the hidden folder.

    Raises:
        DataError: there are more samples, or damaged tars, than the build allows; sums them up
            by reason and gives the first.
    """
    workspace.rejected.unlink(missing_ok=True)
    tars = sum(one["kind"] == DAMAGED_TAR for one in rejected)
    total = f"{build.samples:,} samples" if build.samples < UNKNOWN else "a partition's samples"
    many = f"{len(rejected):,} of {total} were", build.allowed
    if len(rejected) <= build.allowed:
        if tars <= build.allowed_tars:
            return
        many = f"{tars:,} of {build.tars:,} tars are damaged and were", build.allowed_tars
    write_text(workspace.rejected, lines_of(rejected))
    kinds = Counter(one["kind"] for one in rejected)
    raise DataError(
        f"{many[0]} rejected, more than the {many[1]:,} of max_rejected={build.max_rejected:g} "
        f"({summed_up(kinds)}): see {workspace.rejected}; finished shards are kept. The first: "
        f"{_first(rejected)}"
    )


def summed_up(kinds: Counter[str]) -> str:
    """Return how many samples were left out for which kind of reason, the most frequent first."""
    return ", ".join(f"{kind}: {count:,}" for kind, count in kinds.most_common())


def _first(rejected: Sequence[Rejection]) -> str:
    return rejected[0]["reason"] if rejected else "there are none"


def lines_of(rejected: Sequence[Rejection]) -> str:
    """Return the list of rejected samples as it is written."""
    return "".join(json.dumps(one, sort_keys=True, ensure_ascii=False) + "\n" for one in rejected)


def records_of(
    workspace: Workspace, build: Build, read: Callable[[Workspace, int, str], _Record | None]
) -> dict[int, _Record]:
    """Return the records of all units of a build, by their numbers.

    Raises:
        DataError: some are not done; names the partitions that are to be built.
    """
    found = {number: read(workspace, number, identity) for number, identity in build.numbered()}
    missing = [shard for shard, record in found.items() if record is None]
    if not missing:
        return {number: record for number, record in found.items() if record is not None}
    open_units = sorted({shard // GROUP for shard in missing}) if build.groups else missing
    advice = unmade(workspace, open_units, len(build.groups) or len(found))
    raise DataError(
        f"{len(missing):,} of the {len(found):,} shards of {workspace.target} are not made, the "
        f"first is {shard_name(missing[0])}: {advice}"
    )


def publish_vocabulary(workspace: Workspace) -> int:
    """Give the folder of splits its vocabulary, if it has none; return its number of words."""
    vocabulary = Vocabulary.load(workspace.vocabulary)
    place = workspace.target.parent / VOCABULARY
    if not place.exists():
        copy = workspace.folder / "published.json"  # a kill leaves nothing beside the splits
        vocabulary.save(copy)
        copy.replace(place)
    elif Vocabulary.load(place).sha256 != vocabulary.sha256:
        raise DataError(
            f"{place} has other words than {workspace.vocabulary}: splits of one folder share "
            "one vocabulary, so build again to use that of the folder, or move it away"
        )
    return vocabulary.size


def _move_up(workspace: Workspace, made: Sequence[_Made]) -> None:
    """Close the gaps of empty shards.

    A moved shard counts as not done any more, in case that this is interrupted: its number may
    then be that of another tar.
    """
    moved = [one for one in made if one.number != one.source]
    for one in moved:
        workspace.record(one.source).unlink(missing_ok=True)
    fsync_folder(workspace.folder)
    for one in moved:
        workspace.tar(one.source).replace(workspace.tar(one.number))


def _write(
    workspace: Workspace, build: Build, made: Sequence[_Made], rejected: Sequence[Rejection]
) -> None:
    shards = [_shard(one) for one in made]
    formats = Counter[str]()
    for one in made:
        formats.update(one.record.formats)
    Manifest(
        folder=workspace.split,
        name=build.name,
        split=build.split,
        size=build.size or max(one.record.largest for one in made),
        smallest=min(one.record.smallest for one in made),
        image_format=max(sorted(formats), key=formats.__getitem__),
        sample_count=sum(shard.count for shard in shards),
        shard_count=len(shards),
        bytes=sum(shard.bytes for shard in shards),
        shards_sha256=save_tables(workspace.split, shards, _rows(workspace, made)),
        storing=build.storing,
        vocabulary=Vocabulary.load(workspace.vocabulary).sha256,
    ).save()
    if rejected:
        write_text(workspace.split / REJECTED, lines_of(rejected))


def _shard(one: _Made) -> Shard:
    record = one.record
    return Shard(one.number, record.count, record.bytes, record.sha256, record.rows_sha256)


def _clear(workspace: Workspace, made: Sequence[_Made], rejected: Sequence[Rejection]) -> None:
    """Remove what earlier tries with other settings have left."""
    expected = {shard_name(one.number) for one in made} | {MANIFEST, INDEX, SHARDS}
    expected |= {OUTLINE} if len(made) > MOST else set()
    expected |= {REJECTED} if rejected else set()
    for path in workspace.split.iterdir():
        if path.name not in expected:
            path.unlink()


def _rows(workspace: Workspace, made: Sequence[_Made]) -> Iterator[Index]:
    for one in made:
        rows = rows_of(workspace, one.source, one.record)
        if rows is None:
            raise DataError(
                f"{workspace.rows(one.source)} has changed: delete {workspace.folder} and build "
                "the split again"
            )
        yield rows
