"""Building splits: the whole at once, part by part on several nodes, and merging the parts."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from t2i_hpc.common.errors import DataError
from t2i_hpc.config.data import ShardsConfig
from t2i_hpc.data.building.conversion import is_verbatim
from t2i_hpc.data.building.finish import Built, finish, refuse_rejected
from t2i_hpc.data.building.identity import identities
from t2i_hpc.data.building.shard import Note, Task, TooManyRejected, note_of
from t2i_hpc.data.building.space import check_space
from t2i_hpc.data.building.workers import Limit, make_shards
from t2i_hpc.data.building.workspace import Build, Part, Workspace, disk_errors, locked
from t2i_hpc.data.manifest import MANIFEST, Manifest
from t2i_hpc.data.sources import SOURCES, SourceSample
from t2i_hpc.data.sources.sample import refuse
from t2i_hpc.data.vocabularies import choose_vocabulary

_NO_FOLDER_NAME = re.compile(r"[^A-Za-z0-9_-]")


def write_shards(config: ShardsConfig) -> Manifest:
    """Build one split of shards, and the vocabulary where there is none yet.

    Args:
        config: what to read, where to write, and how images are stored; its part is not looked at.

    Raises:
        DataError: the source does not fit together, too many images cannot be decoded, the
            disk is full, the split is there already, or another build is writing into the
            same folder.
    """
    return build_split(config).manifest


def build_split(config: ShardsConfig) -> Built:
    """Build one split like :func:`write_shards`; also say what was left out."""
    workspace = _workspace(config)
    with _alone(workspace):
        _make(config, workspace, Part())
        return _finish(workspace, None)


def build_part(config: ShardsConfig) -> range:
    """Make the shards of ``config.part``; other nodes may make other parts at the same time.

    Returns:
        The shards of the part.

    Raises:
        DataError: as :func:`write_shards` does.
    """
    part, workspace = Part.parse(config.part), _workspace(config)
    with _beside_others(workspace, part):
        return _make(config, workspace, part)


def merge_split(target: Path, max_rejected: float | None = None) -> Built:
    """Make a split of its parts, all of which were made; the source is not needed.

    Args:
        target: folder of the split that is to appear.
        max_rejected: share of the images that may be rejected; None: as in the parts.

    Raises:
        DataError: parts are missing, or being made; too many images were rejected.
    """
    workspace = Workspace(target)
    if (target / MANIFEST).exists():
        raise DataError(f"{target} is merged already: verify reads it again")
    if not workspace.folder.is_dir():
        raise DataError(
            f"{target} has no parts to merge: name the split, e.g. shards/mine/train, whose parts "
            "were built with part="
        )
    _refuse_existing(target)
    with (
        locked(target.parent, _busy(target.parent), shared=True),
        locked(workspace.folder, f"parts of {target} are being made: wait until they have ended"),
    ):
        return _finish(workspace, max_rejected)


def _workspace(config: ShardsConfig) -> Workspace:
    """Return where the split is made; the folder of splits is made if there is none."""
    if not config.output:
        raise DataError("output= is missing: name the folder to write, e.g. shards/mine")
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


def _busy(output: Path) -> str:
    return f"another build is writing into {output}: wait until it has ended"


@contextmanager
def _alone(workspace: Workspace) -> Iterator[None]:
    output = workspace.target.parent
    with locked(output, _busy(output)):
        _refuse_existing(workspace.target)
        yield


@contextmanager
def _beside_others(workspace: Workspace, part: Part) -> Iterator[None]:
    """Keep whole builds, merges and the same part away, but no other part."""
    output = workspace.target.parent
    with disk_errors(workspace.folder):
        workspace.folder.mkdir(exist_ok=True)
    with (
        locked(output, _busy(output), shared=True),
        locked(workspace.folder, _busy(output), shared=True),
        locked(workspace.lock_of(part), f"part {part} is being made already: wait for it"),
    ):
        _refuse_existing(workspace.target)
        yield


def _make(config: ShardsConfig, workspace: Workspace, part: Part) -> range:
    """Make the shards of a part that are not done yet; return all shards of the part."""
    samples = SOURCES[config.source](config)
    _refuse_unprintable(samples)
    vocabulary = choose_vocabulary(config, samples)
    task = _task(config, samples[: config.limit], workspace)
    shards = part.of(len(task.build.identities))
    done = {shard: note for shard in shards if (note := _done(task, shard)) is not None}
    open_shards = [shard for shard in shards if shard not in done]
    _say_how_it_begins(task, shards, done)
    remaining = [task.samples[number] for shard in open_shards for number in task.numbers(shard)]
    check_space(workspace.target.parent, remaining, config)
    with disk_errors(workspace.folder):
        workspace.split.mkdir(parents=True, exist_ok=True)
        vocabulary.save(workspace.vocabulary)
        task.build.save(workspace)
    try:
        limit = Limit(task.build.allowed)
        limit.add(sum(len(note.rejected) for note in done.values()))
        make_shards(task, open_shards, limit)
    except TooManyRejected as stop:
        _refuse_all_rejected(task, stop)
    return shards


def _refuse_unprintable(samples: Sequence[SourceSample]) -> None:
    """Refuse names that no JSON file or terminal can show as they are."""
    unfit = [ascii(sample.key) for sample in samples if not sample.key.isprintable()]
    refuse(unfit, "images have names with unprintable characters", "rename them")


def _task(config: ShardsConfig, samples: Sequence[SourceSample], workspace: Workspace) -> Task:
    build = Build(
        name=config.name or config.source,
        split=config.split,
        size=0 if is_verbatim(samples[0], config) else config.size,
        samples=len(samples),
        max_rejected=config.max_rejected,
        identities=identities(samples, config),
    )
    return Task(config, samples, build, workspace)


def _done(task: Task, shard: int) -> Note | None:
    return note_of(task.workspace, shard, task.build.identities[shard])


def _say_how_it_begins(task: Task, shards: range, done: dict[int, Note]) -> None:
    before = Build.load(task.workspace)
    if done:
        sys.stderr.write(f"resuming: {len(done):,} of {len(shards):,} shards are done\n")
    elif before is not None and before.identities != task.build.identities:
        sys.stderr.write(
            f"starting anew: {task.workspace.folder} is of other settings or another source\n"
        )


def _refuse_all_rejected(task: Task, stop: TooManyRejected) -> None:
    """List the rejected images of all shards that are done, and of that which is not."""
    notes = (_done(task, shard) for shard in range(len(task.build.identities)))
    rejected = [one for note in notes if note is not None for one in note.rejected]
    refuse_rejected(task.workspace, task.build, rejected + stop.rejected)


def _finish(workspace: Workspace, max_rejected: float | None) -> Built:
    build = Build.load(workspace)
    if build is None:
        raise DataError(f"{workspace.folder} holds no build: delete it and build the split again")
    if max_rejected is not None:
        build = replace(build, max_rejected=max_rejected)
    with disk_errors(workspace.folder):
        return finish(workspace, build)
