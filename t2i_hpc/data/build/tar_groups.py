"""Shards of tars that are read in groups: which they are is known when a group was read.

A partition takes whole groups, reads their captions, and knows of no other. So shards are numbered
group by group until the merge closes the gaps, and what a group became stands beside them::

    .SPLIT.partial/group-000012.json   its samples, the identities of its shards
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from t2i_hpc.common.errors import DataError
from t2i_hpc.common.files import sha256_of_json, write_json
from t2i_hpc.config.data import ShardsConfig
from t2i_hpc.data.build.shard import DIGITS, identities, settings_of
from t2i_hpc.data.build.sources import SourceSample
from t2i_hpc.data.build.sources.webdataset_tars import TarGroup, TarGroups
from t2i_hpc.data.build.workspace import GROUP, UNKNOWN, Build, Workspace, unmade

Take = Callable[[list[SourceSample]], tuple[list[SourceSample], int]]


@dataclass(frozen=True)
class GroupRecord:
    """What a group became.

    Attributes:
        identity: what it follows from.
        samples: that were taken of it.
        shards: identities of its shards.
        filtered: samples that the filter left out.
        without_end: its tars without an end mark.
    """

    identity: str
    samples: int = 0
    shards: list[str] = field(default_factory=list)
    filtered: int = 0
    without_end: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Grouped:
    """The samples of some groups and the shards that they become.

    Attributes:
        samples: of all these groups.
        ranges: which of them each shard holds.
        records: of the groups, by their numbers.
    """

    samples: list[SourceSample]
    ranges: Mapping[int, range]
    records: Mapping[int, GroupRecord]

    @classmethod
    def of(
        cls,
        found: Mapping[int, TarGroup],
        take: Take,
        config: ShardsConfig,
        names: Sequence[str],
    ) -> Grouped:
        """Cut groups into shards.

        Args:
            found: the groups.
            take: chooses samples; returns how many a filter left out as well.
            config: of the build.
            names: identities of all groups.
        """
        samples, ranges, records = (
            list[SourceSample](),
            dict[int, range](),
            dict[int, GroupRecord](),
        )
        for number, group in found.items():
            taken, filtered = take(group.samples)
            shards = identities(taken, config)
            for place in range(len(shards)):
                begin = place * config.shard_samples
                end = min(begin + config.shard_samples, len(taken))
                ranges[number * GROUP + place] = range(len(samples) + begin, len(samples) + end)
            samples += taken
            records[number] = GroupRecord(
                names[number], len(taken), [*shards], filtered, group.without_end
            )
        return cls(samples, ranges, records)

    def save(self, workspace: Workspace) -> None:
        """Write the records of the groups."""
        for number, record in self.records.items():
            write_json(_file(workspace, number), asdict(record))


def group_identities(groups: TarGroups, config: ShardsConfig, held_out: bool | None) -> list[str]:
    """Return what each group follows from: its tars as they are listed, and the settings."""
    settings = [
        settings_of(config),
        config.shard_samples,
        config.limit,
        asdict(groups.rules),
        config.filter,
        [held_out, config.test_fraction],
    ]
    names = (groups.states(number) for number in range(len(groups)))
    return [sha256_of_json([settings, states])[:DIGITS] for states in names]


def resolved(workspace: Workspace, build: Build, *, partial: bool = False) -> Build:
    """Return a build with what is known of its groups: shards, samples, remarks.

    Args:
        workspace: where its records are.
        build: as it was saved.
        partial: leave out groups that were not read yet.

    Raises:
        DataError: some were not; names the partitions that are to be built.
    """
    if not build.groups:
        return build
    found = {number: _load(workspace, number, name) for number, name in enumerate(build.groups)}
    missing = [number for number, record in found.items() if record is None]
    if missing and not partial:
        what = f"{len(missing):,} of the {len(found):,} groups of tars of {workspace.target}"
        raise DataError(f"{what} are not made: {unmade(workspace, missing, len(found))}")
    known = {number: record for number, record in found.items() if record is not None}
    return replace(
        build,
        identities=_numbered(known),
        samples=sum(record.samples for record in known.values()),
        remarks=[*_remarks(build, known.values()), *build.remarks],
    )


def with_groups(build: Build, grouped: Grouped, whole: bool) -> Build:
    """Return a build as it is while the shards of some groups are made."""
    samples = len(grouped.samples) if whole else UNKNOWN
    return replace(build, identities=_numbered(grouped.records), samples=samples)


def _numbered(records: Mapping[int, GroupRecord]) -> dict[int, str]:
    return {
        number * GROUP + place: identity
        for number, record in records.items()
        for place, identity in enumerate(record.shards)
    }


def _remarks(build: Build, records: Any) -> list[str]:
    filtered, without_end = 0, list[str]()
    for record in records:
        filtered += record.filtered
        without_end += record.without_end
    said = []
    if without_end:
        said.append(
            f"{len(without_end):,} tars have no end mark, as if cut between two files; "
            f"the first is {without_end[0]}"
        )
    return [*said, f"{filtered:,} left out by filter="] if build.filter else said


def _load(workspace: Workspace, number: int, identity: str) -> GroupRecord | None:
    try:
        content: dict[str, Any] = json.loads(_file(workspace, number).read_text(encoding="utf-8"))
        record = GroupRecord(**content)
    except (OSError, ValueError, TypeError, RecursionError):
        return None
    return record if record.identity == identity else None


def _file(workspace: Workspace, number: int) -> Path:
    return workspace.folder / f"group-{number:06d}.json"
