"""Building splits: the whole at once, or partition by partition on several nodes and a merge."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

from t2i_hpc.common.errors import DataError
from t2i_hpc.config.data import ShardsConfig
from t2i_hpc.data.build.choose_vocabulary import check_vocabulary_is_there
from t2i_hpc.data.build.chosen_samples import Job
from t2i_hpc.data.build.finish import BuiltSplit, FinishedSplit, finish, summed_up
from t2i_hpc.data.build.finish_index import IndexedSplit, finish_index
from t2i_hpc.data.build.index_in_place import (
    check_index,
    check_index_settings,
    index_partition,
    index_task,
)
from t2i_hpc.data.build.make_partition import make_partition
from t2i_hpc.data.build.partition_tasks import planned
from t2i_hpc.data.build.refuse_settings import check_settings
from t2i_hpc.data.build.sources import SOURCES
from t2i_hpc.data.build.sources.indexed_split import SplitSamples
from t2i_hpc.data.build.sources.sample import AddressedSamples
from t2i_hpc.data.build.tar_groups import resolved
from t2i_hpc.data.build.workspace import (
    Build,
    Partition,
    Workspace,
    allowed_of,
    disk_errors,
    locked,
)
from t2i_hpc.data.format.manifest import MANIFEST, VOCABULARY

_NO_FOLDER_NAME = re.compile(r"[^A-Za-z0-9_-]")
HELD_OUT = "test"


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
    check_settings(config)
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
    check_settings(config)
    if not config.test_fraction:
        return [Job(config, _workspace(config), None)]
    if config.split == HELD_OUT:
        raise DataError(
            f"test_fraction= holds out the split {HELD_OUT}: name the other one, split=train"
        )
    workspace = _workspace(config)
    held_out = _workspace(replace(config, split=HELD_OUT))
    return [Job(config, workspace, False), Job(config, held_out, True)]


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
    tasks, vocabulary = planned(jobs, partition)
    return [make_partition(task, partition, vocabulary) for task in tasks]


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
