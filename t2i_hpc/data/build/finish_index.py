"""From tars that are indexed to a split: one table of their rows, their descriptions in one file.

Rows and descriptions are copied through, a tar at a time; in memory is a record for each tar. All
of it can be repeated after an interruption; the renaming of the folder is last.
"""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from t2i_hpc.common.errors import DataError
from t2i_hpc.common.files import fsync_folder, sha256_of_file, size_text, write_text
from t2i_hpc.data.build.choose_vocabulary import (
    refuse_foreign_words,
    remarks_on,
    remarks_on_silent,
    vocabulary_of_counts,
)
from t2i_hpc.data.build.finish import (
    REJECTED,
    FinishedSplit,
    lines_of,
    publish_vocabulary,
    records_of,
    refuse_rejected,
)
from t2i_hpc.data.build.sample_filter import ALWAYS_SAID, SampleFilter
from t2i_hpc.data.build.tar_records import TarRecord
from t2i_hpc.data.build.word_counts import WordCounts
from t2i_hpc.data.build.workspace import Build, Workspace
from t2i_hpc.data.captions import Vocabulary
from t2i_hpc.data.format.manifest import DESCRIPTIONS, IN_PLACE, MANIFEST, TARS, Manifest
from t2i_hpc.data.format.tables import INDEX, ROW, SHARDS, Index, Shard, save_tables, sha256_of_rows

_WHOLE = {INDEX, SHARDS, DESCRIPTIONS, TARS, MANIFEST, REJECTED}


@dataclass(frozen=True)
class IndexedSplit(FinishedSplit):
    """A split whose samples stay in the tars of others.

    Attributes:
        filtered: how many the filter left out.
    """

    filtered: int = 0

    def facts(self) -> list[str]:
        """Return samples, tars, bytes of tars and index, words, and what the filter left out."""
        manifest, index = self.manifest, self.manifest.bytes_of_index
        said = [
            f"{manifest.sample_count:,} samples in {manifest.shard_count:,} of {self.tars:,} tars, "
            f"{size_text(manifest.bytes)}; index of {size_text(index)} "
            f"({index / manifest.bytes:.1%})",
            f"vocabulary of {self.vocabulary:,} words",
        ]
        if self.filtered:
            said.append(f"{self.filtered:,} left out by filter=")
        return said


@dataclass(frozen=True)
class _Unit:
    """A tar that has samples: its number among all tars, its record."""

    number: int
    record: TarRecord


def record_of_tar(workspace: Workspace, number: int, identity: str) -> TarRecord | None:
    """Return the record of a tar if it is indexed: same identity, rows and descriptions whole."""
    try:
        content: dict[str, Any] = json.loads(workspace.record(number).read_text(encoding="utf-8"))
        record = TarRecord(**content)
        rows = workspace.rows(number).stat().st_size == record.count * ROW.itemsize
        texts = workspace.texts(number).stat().st_size == record.text_bytes
        words = workspace.words(number).stat().st_size == record.word_bytes
    except (OSError, ValueError, TypeError, RecursionError):
        return None
    return record if record.identity == identity and rows and texts and words else None


def finish_index(workspace: Workspace, build: Build) -> IndexedSplit:
    """Make the split of tars that are all indexed.

    Raises:
        DataError: tars are missing, too many samples were rejected, no sample says what the
            filter asks, or the folder's vocabulary has other words.
    """
    records = list(records_of(workspace, build, record_of_tar).values())
    rejected = [one for record in records for one in record.rejected]
    filtered = sum(record.filtered for record in records)
    count = sum(record.count for record in records)
    refuse_rejected(workspace, replace(build, samples=count + filtered + len(rejected)), rejected)
    if build.filter and count + filtered:
        said = {name for record in records for name in record.said}
        SampleFilter(build.filter).check(said | {*ALWAYS_SAID})
    units = [_Unit(number, record) for number, record in enumerate(records) if record.count]
    if not units:
        why = f"filter= leaves out all {filtered:,}" if filtered else "the tars hold no images"
        raise DataError(f"{workspace.target} would have no samples: {why}")
    for path in workspace.split.iterdir():
        if path.name not in _WHOLE:
            path.unlink()
    shards = _write(workspace, units)
    remarks = _settle_vocabulary(workspace, build, units)
    size = publish_vocabulary(workspace)
    _manifest(workspace, build, units, shards).save()
    (workspace.split / REJECTED).unlink(missing_ok=True)
    if rejected:
        write_text(workspace.split / REJECTED, lines_of(rejected))
    fsync_folder(workspace.split)
    workspace.split.rename(workspace.target)
    fsync_folder(workspace.target.parent)
    shutil.rmtree(workspace.folder, ignore_errors=True)
    manifest = Manifest.load(workspace.target)
    kinds = Counter(one["kind"] for one in rejected)
    of_tars = (*_without_end(records), *_fewer_than_counted(records))
    return IndexedSplit(manifest, kinds, size, build.tars, (*remarks, *of_tars), filtered=filtered)


def _settle_vocabulary(
    workspace: Workspace, build: Build, units: Sequence[_Unit]
) -> tuple[str, ...]:
    """Make the vocabulary, or compare the one there is; return what the user should know.

    The counts of words say nearly all. Captions are read again only where the vocabulary lacks
    words of theirs, so that some may have none that it knows.
    """
    counted, bounded = WordCounts(), build.min_count > 1 or build.max_words > 0
    for unit in units:
        counted.add(WordCounts.load(workspace.words(unit.number)), bounded)
    if workspace.vocabulary.exists():
        vocabulary = Vocabulary.load(workspace.vocabulary)
        refuse_foreign_words(vocabulary, counted.words, "the vocabulary")
    else:
        vocabulary = vocabulary_of_counts(
            counted.words, build.letters, build.min_count, build.max_words
        )
        vocabulary.save(workspace.vocabulary)
    if not bounded and counted.words.keys() <= {*vocabulary.words}:
        silent = counted.silent, counted.example
        return remarks_on_silent(vocabulary.letters, counted.captions, *silent)
    return remarks_on(vocabulary, _Captions(workspace))


def _without_end(records: Sequence[TarRecord]) -> list[str]:
    found = [record.tar for record in records if not record.ended]
    if not found:
        return []
    return [
        f"{len(found):,} tars have no end mark, as if cut between two files; the first is "
        f"{found[0]}"
    ]


def _fewer_than_counted(records: Sequence[TarRecord]) -> list[str]:
    """Compare tars in folders with the ``_stats.json`` that img2dataset leaves beside each."""
    found = list[str]()
    for record in records:
        stats = Path(record.tar.removesuffix(".tar") + "_stats.json")
        try:
            counted = json.loads(stats.read_text(encoding="utf-8"))["successes"]
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            continue
        held = record.count + record.filtered + len(record.rejected)
        if type(counted) is int and held < counted:
            found.append(f"{record.tar} ({held:,} of {counted:,})")
    if not found:
        return []
    return [
        f"{len(found):,} tars hold fewer samples than their _stats.json counts; the first is "
        f"{found[0]}"
    ]


def _write(workspace: Workspace, units: Sequence[_Unit]) -> list[Shard]:
    """Write descriptions, places of tars and both tables; return the shards."""
    shards, begins, begin = list[Shard](), list[int](), 0
    with (workspace.split / DESCRIPTIONS).open("wb") as stream:
        for unit in units:
            with workspace.texts(unit.number).open("rb") as texts:
                shutil.copyfileobj(texts, stream)
            begins.append(begin)
            begin += unit.record.text_bytes
        stream.flush()
        os.fsync(stream.fileno())
    for place, (unit, first) in enumerate(zip(units, begins, strict=True)):
        record, rows = unit.record, _rows(workspace, unit, first)
        shards.append(Shard(place, record.count, record.bytes, record.sha256, sha256_of_rows(rows)))
    places = (
        {"tar": unit.record.tar, "bytes": unit.record.bytes, "stamp": unit.record.stamp}
        for unit in units
    )
    write_text(workspace.split / TARS, "".join(json.dumps(one) + "\n" for one in places))
    rows_of_all = (_rows(workspace, unit, first) for unit, first in zip(units, begins, strict=True))
    save_tables(workspace.split, shards, rows_of_all)
    return shards


def _rows(workspace: Workspace, unit: _Unit, begin: int) -> Index:
    """Return the rows of a tar, whose descriptions begin at `begin` in those of all."""
    rows: Index = np.frombuffer(workspace.rows(unit.number).read_bytes(), dtype=ROW).copy()
    rows["json_offset"] += np.uint64(begin)
    return rows


class _Captions:
    """The captions of all samples, read from the descriptions whenever they are asked for."""

    def __init__(self, workspace: Workspace) -> None:
        self._folder = workspace.split

    def __iter__(self) -> Iterator[str]:
        ends = np.lib.format.open_memmap(self._folder / INDEX, "r")
        with (self._folder / DESCRIPTIONS).open("rb") as stream:
            for begin in range(0, len(ends), 4096):
                for count in ends["json_bytes"][begin : begin + 4096].tolist():
                    yield from json.loads(stream.read(count))["captions"]


def _manifest(
    workspace: Workspace, build: Build, units: Sequence[_Unit], shards: Sequence[Shard]
) -> Manifest:
    formats = Counter[str]()
    for unit in units:
        formats.update(unit.record.formats)
    return Manifest(
        folder=workspace.split,
        name=build.name,
        split=build.split,
        size=max(unit.record.largest for unit in units),
        smallest=min(unit.record.smallest for unit in units),
        image_format=max(sorted(formats), key=formats.__getitem__),
        sample_count=sum(shard.count for shard in shards),
        shard_count=len(shards),
        bytes=sum(shard.bytes for shard in shards),
        shards_sha256=sha256_of_file(workspace.split / SHARDS),
        vocabulary=Vocabulary.load(workspace.vocabulary).sha256,
        format=IN_PLACE,
        storing=build.storing,
        checksum=build.checksum,
    )
