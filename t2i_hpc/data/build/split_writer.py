"""Building splits: the whole at once, or partition by partition on several nodes and a merge."""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

from t2i_hpc.common.errors import DataError
from t2i_hpc.config.data import ShardsConfig
from t2i_hpc.data.build.choose_vocabulary import check_vocabulary_is_there, choose_vocabulary
from t2i_hpc.data.build.chosen_samples import Job, printable
from t2i_hpc.data.build.conversion import LOSSLESS, check_space, is_verbatim, storing
from t2i_hpc.data.build.finish import BuiltSplit, FinishedSplit, finish, refuse_rejected, summed_up
from t2i_hpc.data.build.finish_index import IndexedSplit, finish_index
from t2i_hpc.data.build.index_in_place import (
    check_index,
    check_index_settings,
    index_partition,
    index_task,
)
from t2i_hpc.data.build.sample_filter import SampleFilter
from t2i_hpc.data.build.shard import (
    ShardRecord,
    Task,
    TooManyRejected,
    identities,
    record_of,
    rejection,
)
from t2i_hpc.data.build.sources import SOURCES, SourceData, SourceSample
from t2i_hpc.data.build.sources.indexed_split import SplitSamples
from t2i_hpc.data.build.sources.sample import AddressedSamples, OwnSamples
from t2i_hpc.data.build.sources.webdataset_tars import TarGroups
from t2i_hpc.data.build.tar_groups import Grouped, group_identities, resolved, with_groups
from t2i_hpc.data.build.workers import Limit, make_shards
from t2i_hpc.data.build.workspace import (
    Build,
    Partition,
    Workspace,
    allowed_of,
    disk_errors,
    locked,
)
from t2i_hpc.data.captions import Vocabulary
from t2i_hpc.data.format.manifest import MANIFEST, VOCABULARY

_NO_FOLDER_NAME = re.compile(r"[^A-Za-z0-9_-]")
HELD_OUT = "test"
_ESTIMATED, _IN_A_ROW = 256, 32  # samples
_LOSSY = ("jpeg", "webp")
_SCALED = (*_LOSSY, LOSSLESS)


def build_split(config: ShardsConfig) -> BuiltSplit:
    """Build one split of shards, and the vocabulary where there is none yet.

    Args:
        config: what to read, where to write, and how images are stored; its partition is ignored.

    Raises:
        DataError: the source does not fit together, too many samples cannot be used, the disk
            is full, or the split is there already or being built.
    """
    return build_splits(config)[0]


def build_splits(config: ShardsConfig) -> list[BuiltSplit]:
    """Build the split of a configuration, and the one that is held out of it, if one is.

    Raises:
        DataError: as :func:`build_split` does.
    """
    jobs = _jobs(config)
    with ExitStack() as locks:
        for job in jobs:
            locks.enter_context(locked(job.workspace.lock, _busy(job.workspace.target)))
        locks.enter_context(_vocabulary_settled(jobs[0].workspace))
        for job in jobs:
            _refuse_existing(job.workspace.target)
        _make(jobs, Partition())
        return [_finish(job.workspace, None) for job in jobs]


def build_partition(config: ShardsConfig) -> list[Sequence[int]]:
    """Make the shards of ``config.partition``; other nodes may make others at the same time.

    Returns:
        The shards of the partition, and those of the split that is held out, if one is.

    Raises:
        DataError: as :func:`build_split` does.
    """
    partition, jobs = Partition.parse(config.partition), _jobs(config)
    with ExitStack() as locks:
        for job in jobs:
            locks.enter_context(_partition_locked(job.workspace, partition))
        return _make(jobs, partition)


def build_index(config: ShardsConfig) -> IndexedSplit:
    """Index tars where they lie, see :mod:`t2i_hpc.data.build.index_in_place`.

    Raises:
        UserError: the tars cannot be read, too many samples cannot be used, the disk is full, or
            the split is there already or being built.
    """
    workspace = _index_workspace(config)
    with (
        locked(workspace.lock, _busy(workspace.target)),
        _vocabulary_settled(workspace),
    ):
        _refuse_existing(workspace.target)
        index_partition(index_task(config, workspace), Partition())
        return finish_index(workspace, _build_of(workspace))


def build_index_partition(config: ShardsConfig) -> range:
    """Index the tars of ``config.partition``; returns them.

    Raises:
        UserError: as :func:`build_index` does.
    """
    partition, workspace = Partition.parse(config.partition), _index_workspace(config)
    with _partition_locked(workspace, partition):
        return index_partition(index_task(config, workspace), partition)


def _index_workspace(config: ShardsConfig) -> Workspace:
    check_index_settings(config)
    return _workspace(replace(config, output=config.index))


def check_source(config: ShardsConfig) -> None:
    """Refuse a build that could not end well, without writing anything.

    Raises:
        DataError: the source cannot be read, or too many of its samples cannot be used.
    """
    if config.index:
        check_index(config)
        return
    _check_settings(config)
    source = SOURCES[config.source](config)
    samples = source.samples
    if isinstance(samples, SplitSamples):  # have a vocabulary
        return
    if isinstance(samples, AddressedSamples) or source.groups is not None:
        check_vocabulary_is_there(config)
    if isinstance(samples, AddressedSamples):
        return
    if source.groups is not None:  # the first of them: a partition reads its own
        samples = source.groups.read(0).samples
    unfit = [sample.unfit for sample in samples if sample.unfit is not None]
    allowed = allowed_of(config.max_rejected, len(samples))
    if len(unfit) > allowed:
        kinds = summed_up(Counter(one.kind for one in unfit))
        raise DataError(
            f"{len(unfit):,} of {len(samples):,} samples cannot be used, more than the "
            f"{allowed:,} of max_rejected={config.max_rejected:g} ({kinds}). The first: "
            f"{unfit[0].reason}"
        )


def merge_split(target: Path, max_rejected: float | None = None) -> FinishedSplit:
    """Make a split of its partitions, all of which were made; the source is not needed.

    Args:
        target: folder of the split that is to appear.
        max_rejected: fraction of the samples that may be rejected; None: as in the partitions.

    Raises:
        DataError: partitions are missing, or being made; too many samples were rejected.
    """
    workspace = Workspace(target)
    if (target / MANIFEST).exists():
        raise DataError(f"{target} is merged already: verify reads it again")
    if not workspace.folder.is_dir():
        raise DataError(
            f"{target} has no partitions to merge: name the split, e.g. shards/mine/train, that "
            "was built with partition="
        )
    _refuse_existing(target)
    making = f"partitions of {target} are being made: wait until they have ended"
    with locked(workspace.lock, making), _vocabulary_settled(workspace):
        build = _build_of(workspace)
        if not build.in_place:
            return _finish(workspace, max_rejected)
        if max_rejected is not None:
            build = replace(build, max_rejected=max_rejected)
        with disk_errors(workspace.folder):
            return finish_index(workspace, build)


def splits_to_merge(folder: Path) -> list[Path]:
    """Return the splits of which partitions were made: the folder itself, or those in it."""
    found = sorted(folder.glob(".*.partial"))
    names = (path.name[1:].removesuffix(".partial") for path in found)
    return [folder / name for name in names] or [folder]


def _jobs(config: ShardsConfig) -> list[Job]:
    _check_settings(config)
    if not config.test_fraction:
        return [Job(config, _workspace(config), None)]
    if config.split == HELD_OUT:
        raise DataError(
            f"test_fraction= holds out the split {HELD_OUT}: name the other one, split=train"
        )
    workspace = _workspace(config)
    held_out = _workspace(replace(config, split=HELD_OUT))
    return [Job(config, workspace, False), Job(config, held_out, True)]


def _check_settings(config: ShardsConfig) -> None:
    """Refuse settings that the source or the format would ignore.

    Raises:
        DataError: names the first of them.
    """
    if config.filter:
        SampleFilter(config.filter)  # is one
    default = ShardsConfig()
    for key, formats in (("size", _SCALED), ("quality", _LOSSY)):
        value = getattr(config, key)
        if config.format not in formats and value != getattr(default, key):
            raise DataError(
                f"{key}={value} has no meaning with format={config.format}: leave it out, or take "
                f"{' or '.join(f'format={form}' for form in formats)}"
            )
    tars, plain = ("webdataset",), ("coco", "folder", "mds", "webdataset")
    tables = ("parquet",)
    for key in ("urls", "check_images", "checksum"):
        if getattr(config, key) != getattr(default, key):
            raise DataError(f"{key}= belongs to index=, which leaves tars where they lie")
    for key, value, sources in (
        ("image_member", config.image_member, tars),
        ("caption_member", config.caption_member, tars),
        ("image_key", config.image_key, tables),
        ("caption_key", config.caption_key, (*plain, *tables)),
        ("test_fraction", config.test_fraction, plain),
        ("filter", config.filter, (*plain, *tables, "cub", "flowers", "pickles")),
    ):
        if value and config.source not in sources:
            raise DataError(
                f"{key}={value} does not belong to source={config.source}, but to "
                f"{' and '.join(f'source={source}' for source in sources)}: leave it out"
            )


def _workspace(config: ShardsConfig) -> Workspace:
    """Return where the split is made; the folder of splits is made if there is none."""
    if not config.output:
        raise DataError("output= is missing: name the folder to write, e.g. shards/mine")
    if "://" in config.output:
        raise DataError(f"output={config.output} is no folder: build in one, then shards upload")
    if _NO_FOLDER_NAME.search(config.split) or not config.split:
        raise DataError(f"split={config.split} is no folder name: use letters, digits, - and _")
    target = Path(config.output) / config.split
    _refuse_existing(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"cannot make the folder output={config.output}: {error}") from error
    return Workspace(target)


def _refuse_existing(target: Path) -> None:
    if target.exists():
        raise DataError(f"{target} is there already: delete that folder to build it again")


def _busy(target: Path) -> str:
    return f"{target} is being built already: wait until that has ended"


@contextmanager
def _vocabulary_settled(workspace: Workspace) -> Iterator[None]:
    """Let splits of one folder be built one after the other until it has a vocabulary.

    The first gives the folder its vocabulary, which the others must know before they begin.
    """
    place = workspace.target.parent / VOCABULARY
    message = (
        f"waiting: another build is writing into {place.parent}, and its splits share the "
        "vocabulary of the first; to build at the same time, write it before (shards vocabulary)"
    )
    with locked(workspace.output_lock, message, shared=place.exists(), wait=True):
        yield


@contextmanager
def _partition_locked(workspace: Workspace, partition: Partition) -> Iterator[None]:
    """Keep whole builds, merges and the same partition out, but no other partition."""
    with disk_errors(workspace.folder):
        workspace.folder.mkdir(exist_ok=True)
    output = workspace.target.parent
    waiting = f"waiting: another build is choosing the vocabulary of {output}"
    making = f"partition {partition} of {workspace.target} is being made already: wait for it"
    with (
        locked(workspace.lock, _busy(workspace.target), shared=True),
        locked(workspace.output_lock, waiting, shared=True, wait=True),
        locked(workspace.lock_of(partition), making, keep=True),
    ):
        _refuse_existing(workspace.target)
        yield


def _make(jobs: Sequence[Job], partition: Partition) -> list[Sequence[int]]:
    """Make the shards of a partition that are not done yet; return all shards of it."""
    tasks, vocabulary = _planned(jobs, partition)
    return [_make_partition(task, partition, vocabulary) for task in tasks]


def _planned(jobs: Sequence[Job], partition: Partition) -> tuple[list[Task], Vocabulary]:
    """Return what a partition makes; of listed samples it keeps its own alone."""
    config = jobs[0].config
    source = SOURCES[config.source](config)
    if source.groups is not None:
        return _planned_groups(jobs, source, source.groups, partition)
    choice = choose_vocabulary(config, source.samples, _own_samples(source, config, partition))
    tasks = [_task(job, source, choice.remarks) for job in jobs]
    for task in tasks:
        _refuse_unfit(task)
    return [_kept(task, partition) for task in tasks], choice.vocabulary


def _kept(task: Task, partition: Partition) -> Task:
    shards = task.build.shards_of(partition)
    if isinstance(task.samples, AddressedSamples):
        return task
    own = range(0)
    if shards:
        own = range(task.numbers(shards[0]).start, task.numbers(shards[-1]).stop)
    return replace(task, samples=OwnSamples(task.samples, own))


def _planned_groups(
    jobs: Sequence[Job], source: SourceData, groups: TarGroups, partition: Partition
) -> tuple[list[Task], Vocabulary]:
    """Return what becomes of a partition's groups of tars; nothing of others is read."""
    config, whole = jobs[0].config, partition.count == 1
    check_vocabulary_is_there(config)
    found = {number: groups.read(number) for number in partition.of(len(groups))}
    samples = [sample for group in found.values() for sample in group.samples]
    if whole and not samples:
        raise DataError(f"the tars of {groups.folder} hold no images: name another folder")
    choice = choose_vocabulary(config, samples, range(len(samples)))
    tasks = []
    for job in jobs:
        names = group_identities(groups, config, job.held_out)
        build = replace(_build(job, source, choice.remarks), groups=names, filter=config.filter)
        grouped = Grouped.of(found, job.taken_of_group, config, names)
        if whole:
            job.check_groups(samples, grouped.samples)
        build = with_groups(build, grouped, whole)
        task = Task(config, grouped.samples, build, job.workspace, ranges=grouped.ranges)
        _refuse_unfit(task)
        with disk_errors(job.workspace.folder):
            job.workspace.folder.mkdir(exist_ok=True)
            grouped.save(job.workspace)
        tasks.append(task)
    return tasks, choice.vocabulary


def _own_samples(source: SourceData, config: ShardsConfig, partition: Partition) -> range:
    """Return which samples of a source a partition makes, before some are held out."""
    shards = partition.of(-(-len(source.samples) // config.shard_samples))
    begin, end = (place * config.shard_samples for place in (shards.start, shards.stop))
    return range(begin, min(end, len(source.samples)))


def _make_partition(task: Task, partition: Partition, vocabulary: Vocabulary) -> Sequence[int]:
    shards = task.build.shards_of(partition)
    done = {shard: one for shard in shards if (one := _done(task, shard)) is not None}
    open_shards = [shard for shard in shards if shard not in done]
    _report_start(task, shards, done)
    workspace = task.workspace
    check_space(workspace.target.parent, *_spread(task, open_shards), task.config)
    with disk_errors(workspace.folder):
        workspace.split.mkdir(parents=True, exist_ok=True)
        vocabulary.save(workspace.vocabulary)
        task.build.save(workspace)
    try:
        limit = Limit(task.build.allowed)
        limit.add(sum(len(one.rejected) for one in done.values()))
        make_shards(task, open_shards, limit)
    except TooManyRejected as stop:
        _refuse_all_rejected(task, stop)
    return shards


def _spread(task: Task, shards: Sequence[int]) -> tuple[list[SourceSample], int]:
    """Return samples evenly spread over shards, by which space is estimated, and how many are."""
    total = sum(task.amount(shard) for shard in shards)
    found, count = list[SourceSample](), min(total, _ESTIMATED)
    if isinstance(task.samples, AddressedSamples) and not isinstance(task.samples, SplitSamples):
        begin = task.numbers(shards[0]).start if shards else 0  # rows far apart cost too much
        return list(task.samples[begin : begin + min(count, _IN_A_ROW)]), total
    for place in range(count):
        if task.ranges is not None:
            found.append(task.samples[place * len(task.samples) // count])
            continue
        shard, inside = divmod(place * total // count, task.config.shard_samples)
        found.append(task.samples[task.numbers(shards[shard]).start + inside])
    return found, total


def _refuse_unfit(task: Task) -> None:
    """Refuse a source with too many samples that cannot be used, before any image is converted."""
    if isinstance(task.samples, AddressedSamples):  # are seen when their shard is made
        return
    unfit = [
        rejection(sample, sample.unfit.kind, sample.unfit.reason)
        for sample in task.samples
        if sample.unfit is not None
    ]
    if unfit:
        with disk_errors(task.workspace.folder):
            task.workspace.folder.mkdir(exist_ok=True)
            refuse_rejected(task.workspace, task.build, unfit)


def _task(job: Job, source: SourceData, remarks: Sequence[str]) -> Task:
    config, (taken, left_out) = job.config, job.taken(source)
    addressed = isinstance(taken, AddressedSamples)
    samples = taken if addressed else [printable(one) for one in taken]
    build = replace(
        _build(job, source, [*left_out, *remarks]),
        samples=len(samples),
        identities=identities(samples, config),
    )
    still = SampleFilter(config.filter) if addressed and config.filter else None
    return Task(config, samples, build, job.workspace, still)


def _build(job: Job, source: SourceData, remarks: Sequence[str]) -> Build:
    config = job.config
    return Build(
        name=config.name or config.source,
        split=job.workspace.target.name,
        size=0 if is_verbatim(config) else config.size,
        samples=0,
        max_rejected=config.max_rejected,
        identities=[],
        tars=source.tars,
        remarks=[*source.remarks, *remarks],
        storing=storing(config),
    )


def _done(task: Task, shard: int) -> ShardRecord | None:
    return record_of(task.workspace, shard, task.build.identities[shard])


def _report_start(task: Task, shards: Sequence[int], done: dict[int, ShardRecord]) -> None:
    before = Build.load(task.workspace)
    if done:
        sys.stderr.write(f"resuming: {len(done):,} of {len(shards):,} shards are done\n")
    elif before is not None and not before.follows_from_the_same(task.build):
        sys.stderr.write(
            f"starting over: {task.workspace.folder} is of other settings or another source\n"
        )


def _refuse_all_rejected(task: Task, stop: TooManyRejected) -> None:
    """List the rejected images of all shards that are done, and of that which is not."""
    records = (_done(task, shard) for shard, _ in task.build.numbered())
    rejected = [one for record in records if record is not None for one in record.rejected]
    refuse_rejected(task.workspace, task.build, rejected + stop.rejected)


def _build_of(workspace: Workspace) -> Build:
    build = Build.load(workspace)
    if build is None:
        raise DataError(f"{workspace.folder} holds no build: delete it and build the split again")
    return build


def _finish(workspace: Workspace, max_rejected: float | None) -> BuiltSplit:
    build = resolved(workspace, _build_of(workspace))
    if max_rejected is not None:
        build = replace(build, max_rejected=max_rejected)
    with disk_errors(workspace.folder):
        return finish(workspace, build)
