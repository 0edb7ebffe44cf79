"""Indexing tars where they lie: a unit of work is a tar, so nothing is known of the whole before.

Any process on any node reads any tar, and what it finds of one depends on that tar alone. The
memory of a process is that of a tar's texts; a merge reads a row a tar and copies the rest through.
Everything is made in the hidden folder of :mod:`t2i_hpc.data.build.workspace`::

    .SPLIT.partial/000012.json    the record of a tar that is done
    .SPLIT.partial/000012.rows    its rows of the index
    .SPLIT.partial/000012.texts   its descriptions
    .SPLIT.partial/000012.words   the words of its captions, counted

A tar counts as done when size and time (on a server: its ETag) are those of its record.
"""

from __future__ import annotations

import logging
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from t2i_hpc.common.errors import ConfigurationError, DataError
from t2i_hpc.common.files import sha256_of_json, write_bytes, write_json
from t2i_hpc.config.data import ShardsConfig
from t2i_hpc.data.build.choose_vocabulary import present_vocabulary
from t2i_hpc.data.build.finish import summed_up
from t2i_hpc.data.build.finish_index import record_of_tar
from t2i_hpc.data.build.sample_filter import ALWAYS_SAID, SampleFilter
from t2i_hpc.data.build.sources.sample import folder_at
from t2i_hpc.data.build.sources.webdataset_tars import DAMAGED_TAR, refuse_compressed, tars_below
from t2i_hpc.data.build.tar_records import (
    Choice,
    Indexed,
    Place,
    TarRecord,
    index_place,
)
from t2i_hpc.data.build.workers import Limit, make_shards
from t2i_hpc.data.build.workspace import Build, Partition, Workspace, disk_errors
from t2i_hpc.data.captions import ASCII
from t2i_hpc.data.format.manifest import ORIGINAL, Storing
from t2i_hpc.data.format.sums import SHA256
from t2i_hpc.data.sidecars import Rules
from t2i_hpc.data.storage.fetching import Server, expand_braces, is_remote
from t2i_hpc.data.storage.retry import shown

_LOG = logging.getLogger(__name__)
_INDEXING = 2  # raise it when the same tar and settings come to give another index
_DIGITS = 32
_RETRY_SECONDS = 120.0
_MEGABYTE = 10**6
_NO_LIMIT = 1 << 62  # of rejected samples while nobody knows how many there are in all
_UNUSED = {
    "size": "images are read as they are",
    "format": "images are read as they are",
    "quality": "images are read as they are",
    "shard_samples": "the tars are the shards",
    "limit": "name fewer tars",
    "test_fraction": "name the tars of the test split with another split=",
}


def check_index_settings(config: ShardsConfig) -> None:
    """Refuse settings that have no meaning for an index in place.

    Raises:
        DataError: names the first of them.
    """
    if config.source != "webdataset":
        raise DataError(
            f"index= is for tars, not for source={config.source}: add source=webdataset"
        )
    if config.output:
        raise DataError("index= writes no shards: leave out output=, or index=")
    default = ShardsConfig()
    for key, reason in _UNUSED.items():
        if getattr(config, key) != getattr(default, key):
            raise DataError(f"{key}= has no meaning with index= ({reason}): leave it out")
    if bool(config.urls) == bool(config.images):
        raise DataError("index= takes either images=, a folder of tars, or urls=[…]")


def check_index(config: ShardsConfig) -> None:
    """Refuse an index that could not end well, without writing anything.

    Raises:
        UserError: settings do not fit, or there are no tars.
    """
    check_index_settings(config)
    if config.filter:
        SampleFilter(config.filter)
    _places(config)


@dataclass(frozen=True)
class IndexTask:
    """The tars of a build, each of which is indexed on its own."""

    config: ShardsConfig
    places: Sequence[Place]
    build: Build
    workspace: Workspace
    choice: Choice

    unit = "MB"

    @property
    def title(self) -> str:
        """What is done, for people."""
        return f"index {self.workspace.target}"

    @property
    def workers(self) -> int | None:
        """How many processes are wanted."""
        return self.config.workers

    def amount(self, number: int) -> int:
        """Return the size of a tar in megabytes."""
        return self.places[number].bytes // _MEGABYTE + 1

    def make(self, number: int, advance: Callable[[int], None]) -> TarRecord:
        """Index a tar, and record that this is done.

        Raises:
            UserError: it cannot be read, none of its samples can be used, or the disk is full.
        """
        place, told = self.places[number], _Megabytes(advance)
        with disk_errors(self.workspace.folder):
            self.workspace.record(number).unlink(missing_ok=True)
            server = Server(_RETRY_SECONDS)
            identity = self.build.identities[number]
            found = index_place(place, identity, self.choice, server, told.add)
            self._refuse_useless(found)
            write_bytes(self.workspace.texts(number), found.texts)
            write_bytes(self.workspace.words(number), found.words)
            write_bytes(self.workspace.rows(number), found.rows.tobytes())
            write_json(self.workspace.record(number), asdict(found.record))
        advance(self.amount(number) - told.told)
        return found.record

    def _refuse_useless(self, found: Indexed) -> None:
        """End at once where the settings do not fit, instead of after all tars."""
        record = found.record
        kinds = Counter(one["kind"] for one in record.rejected if one["kind"] != DAMAGED_TAR)
        wanted = self.choice.filter
        if wanted is not None and record.filtered and not record.count:
            try:
                wanted.check({*record.said, *ALWAYS_SAID})
            except ConfigurationError as error:  # other tars may say more; all of them must
                _LOG.warning("%s (%s)", error, shown(record.tar))
        if kinds and not record.count + record.filtered and self.config.max_rejected < 1:
            raise DataError(
                f"none of the {kinds.total():,} samples of {shown(record.tar)} can be used "
                f"({summed_up(kinds)}). The first: {record.rejected[0]['reason']}"
            )


class _Megabytes:
    """Tells of whole megabytes what is counted in bytes."""

    def __init__(self, advance: Callable[[int], None]) -> None:
        self._advance, self._bytes, self.told = advance, 0, 0

    def add(self, count: int) -> None:
        """Count some bytes."""
        self._bytes += count
        if more := self._bytes // _MEGABYTE - self.told:
            self.told += more
            self._advance(more)


def index_task(config: ShardsConfig, workspace: Workspace) -> IndexTask:
    """Find the tars that a configuration names, and what their index follows from.

    Raises:
        UserError: there are none, or a server does not answer.
    """
    choice = Choice(
        Rules(config.image_member, config.caption_member, config.caption_key),
        SampleFilter(config.filter) if config.filter else None,
        config.check_images == "decode",
        config.checksum,
        _letters(config),
    )
    places = _places(config)
    settings = [
        _INDEXING,
        asdict(choice.rules),
        config.filter,
        config.check_images,
        *([] if config.checksum == SHA256 else [config.checksum]),
        *([] if choice.letters == ASCII else [choice.letters]),
    ]
    build = Build(
        name=config.name or config.source,
        split=config.split,
        size=0,
        samples=0,
        max_rejected=config.max_rejected,
        identities=[sha256_of_json([settings, asdict(one)])[:_DIGITS] for one in places],
        tars=len(places),
        storing=Storing(ORIGINAL, 0, "none"),
        in_place=True,
        checksum=config.checksum,
        letters=config.letters,
        min_count=config.min_count,
        max_words=config.max_words,
        filter=config.filter,
    )
    return IndexTask(config, places, build, workspace, choice)


def _letters(config: ShardsConfig) -> str:
    """Return which letters make words: those of the vocabulary, where there is one."""
    vocabulary, _ = present_vocabulary(replace(config, output=config.index))
    return config.letters if vocabulary is None else vocabulary.letters


def index_partition(task: IndexTask, partition: Partition) -> range:
    """Index the tars of a partition that are not done yet; return all of the partition.

    Raises:
        UserError: as :meth:`IndexTask.make` does, or the vocabulary does not fit.
    """
    workspace = task.workspace
    vocabulary, _ = present_vocabulary(replace(task.config, output=task.config.index))
    tars = partition.of(len(task.places))
    identities = task.build.identities
    still_open = [one for one in tars if record_of_tar(workspace, one, identities[one]) is None]
    if len(still_open) < len(tars):
        done = len(tars) - len(still_open)
        sys.stderr.write(f"resuming: {done:,} of {len(tars):,} tars are done\n")
    if task.config.images:
        mine = [Path(task.places[number].tar) for number in still_open]
        refuse_compressed(mine, Path(task.config.images))
    with disk_errors(workspace.folder):
        workspace.split.mkdir(parents=True, exist_ok=True)
        if vocabulary is not None:
            vocabulary.save(workspace.vocabulary)
        else:
            workspace.vocabulary.unlink(missing_ok=True)
        task.build.save(workspace)
    if still_open:
        make_shards(task, still_open, Limit(_NO_LIMIT))
    return tars


# --- the tars


def _places(config: ShardsConfig) -> list[Place]:
    if config.images:
        folder = folder_at(config.images, "images", "a folder of tars").absolute()
        paths = tars_below(folder)
        return [_here(path, path.relative_to(folder)) for path in paths]
    urls = _expanded(config.urls)
    remote = {is_remote(url, "urls") for url in urls}
    if len(remote) > 1:
        raise DataError("urls= names tars here and on a server: index them as two data sets")
    if not remote.pop():
        paths = [Path(url).absolute() for url in urls]
        root = _common(paths)
        return [_here(path, path.relative_to(root)) for path in paths]
    server = Server(_RETRY_SECONDS)
    names = _names([shown(url) for url in urls])
    found = [server.stamp(url) for url in urls]
    return [
        Place(url, name, size, stamp)
        for url, name, (size, stamp) in zip(urls, names, found, strict=True)
    ]


def _expanded(patterns: Sequence[str]) -> list[str]:
    urls = expand_braces(patterns, "urls")
    if len({*urls}) < len(urls):
        twice = next(url for url, count in Counter(urls).items() if count > 1)
        raise ConfigurationError(f"urls= names {shown(twice)} twice: leave one out")
    return urls


def _here(path: Path, name: Path) -> Place:
    try:
        state = path.stat()
    except OSError as error:
        raise DataError(f"urls= names {path}, which cannot be read: {error.strerror}") from error
    return Place(str(path), name.with_suffix("").as_posix(), state.st_size, str(state.st_mtime_ns))


def _common(paths: Sequence[Path]) -> Path:
    """Return the folder that holds all tars, in its sub-folders perhaps."""
    parents = [{*path.parents} for path in paths]
    return max({*parents[0]}.intersection(*parents[1:]), key=lambda path: len(path.parts))


def _names(urls: Sequence[str]) -> list[str]:
    """Return what is behind the folder that all addresses have in common."""
    parts = [url.split("/") for url in urls]
    shared = min(len(one) for one in parts) - 1
    while len({tuple(one[:shared]) for one in parts}) > 1:
        shared -= 1
    return ["/".join(one[shared:]).removesuffix(".tar") for one in parts]
