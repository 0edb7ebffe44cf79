"""Making a partition's shards: those that are not done yet, within what may be rejected."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from t2i_hpc.data.build.conversion import check_space
from t2i_hpc.data.build.finish import refuse_rejected
from t2i_hpc.data.build.shard import ShardRecord, Task, TooManyRejected, record_of
from t2i_hpc.data.build.sources import SourceSample
from t2i_hpc.data.build.sources.indexed_split import SplitSamples
from t2i_hpc.data.build.sources.sample import AddressedSamples
from t2i_hpc.data.build.workers import Limit, make_shards
from t2i_hpc.data.build.workspace import Build, Partition, disk_errors
from t2i_hpc.data.captions import Vocabulary

_ESTIMATED, _IN_A_ROW = 256, 32  # samples


def make_partition(task: Task, partition: Partition, vocabulary: Vocabulary) -> Sequence[int]:
    """Make the shards of a partition that are not done yet.

    Returns:
        All shards of it.

    Raises:
        DataError: too many samples were rejected, or the disk is full.
    """
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
