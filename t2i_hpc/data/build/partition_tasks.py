"""What each partition of a build makes: its tasks, from a source's samples or groups of tars."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from t2i_hpc.common.errors import DataError
from t2i_hpc.config.data import ShardsConfig
from t2i_hpc.data.build.choose_vocabulary import check_vocabulary_is_there, choose_vocabulary
from t2i_hpc.data.build.chosen_samples import Job, printable
from t2i_hpc.data.build.conversion import is_verbatim, storing
from t2i_hpc.data.build.finish import refuse_rejected
from t2i_hpc.data.build.sample_filter import SampleFilter
from t2i_hpc.data.build.shard import Task, identities, rejection
from t2i_hpc.data.build.sources import SOURCES, SourceData
from t2i_hpc.data.build.sources.sample import AddressedSamples, OwnSamples
from t2i_hpc.data.build.sources.webdataset_tars import TarGroups
from t2i_hpc.data.build.tar_groups import Grouped, group_identities, with_groups
from t2i_hpc.data.build.workspace import Build, Partition, disk_errors
from t2i_hpc.data.captions import Vocabulary


def planned(jobs: Sequence[Job], partition: Partition) -> tuple[list[Task], Vocabulary]:
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
