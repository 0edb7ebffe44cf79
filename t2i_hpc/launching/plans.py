"""From a command line of `launch` to a plan, validated before anything is submitted.

A node that finds no data, no weights, or a batch that its ranks cannot divide costs a place in
the queue. So all that the task itself would refuse at its start is refused here first.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from t2i_hpc.cli.command import split_options
from t2i_hpc.cluster.hardware import find_card, find_network
from t2i_hpc.cluster.jobs import Plan, Work
from t2i_hpc.cluster.sweeps import is_sweep, plan_sweep, refuse_axes
from t2i_hpc.common.errors import ConfigurationError, DataError
from t2i_hpc.common.terminal import say
from t2i_hpc.config.cluster import ClusterConfig, check_cluster
from t2i_hpc.config.compose import compose_config, to_yaml
from t2i_hpc.config.data import ShardsConfig
from t2i_hpc.config.grammar import quoted
from t2i_hpc.config.tasks import (
    TASK_SCHEMAS,
    EvaluateConfig,
    GenerateConfig,
    LaunchConfig,
    ReportConfig,
    TrainConfig,
)
from t2i_hpc.runs.layout import list_checkpoints

_OWN_KEYS = ("task", "cluster")
_SWEEP, _FOLLOW = "--sweep", "--follow"


@dataclass(frozen=True)
class LaunchRequest:
    """What a command line of `launch` asks for.

    Attributes:
        config: the launcher's own settings.
        overrides: of the task.
        folder: of the user's configuration files (``--config-dir``).
        sweep, follow, print_config, print_run: whether that option is given.
    """

    config: LaunchConfig
    overrides: tuple[str, ...]
    folder: Path | None
    sweep: bool
    follow: bool
    print_config: bool
    print_run: bool

    @classmethod
    def read(cls, arguments: Sequence[str]) -> LaunchRequest:
        """Read a command line.

        Raises:
            ConfigurationError: settings or options have no meaning, or none together.
        """
        known = [each for each in arguments if each not in (_SWEEP, _FOLLOW)]
        options, settings = split_options(known)
        own = [each for each in settings if each.split("=")[0].split(".")[0] in _OWN_KEYS]
        overrides = tuple(each for each in settings if each not in own)
        config = compose_config("launch", own, LaunchConfig, options.folder)
        check_cluster(config.cluster, config.task)
        request = cls(
            config,
            overrides,
            options.folder,
            _SWEEP in arguments,
            _FOLLOW in arguments,
            options.print_config,
            options.print_run,
        )
        request._check_options()
        return request

    @property
    def arguments(self) -> tuple[str, ...]:
        """The task's command line."""
        return (*([f"--config-dir={self.folder}"] if self.folder else []), *self.overrides)

    def task_config(self) -> Any:
        """Compose the task's configuration.

        Raises:
            ConfigurationError: it is not valid, or has several values of a key.
        """
        refuse_axes(self.overrides)
        task = self.config.task
        return compose_config(task, self.overrides, TASK_SCHEMAS[task], self.folder)

    @property
    def many_runs(self) -> bool:
        """Whether several runs are trained or scored, each by a work of its own."""
        if self.sweep or self.config.task != "evaluate":
            return self.sweep
        return is_sweep(Path(self.task_config().run))

    def configuration(self) -> str:
        """Return what the launcher and the task are to do, as YAML; of a sweep, the launcher."""
        task = "" if self.sweep else to_yaml(self.task_config())
        return to_yaml(self.config) + task

    def plan(self) -> Plan:
        """Return what is to be run; without works where all points of a sweep are done.

        Raises:
            UserError: whatever the task would refuse as soon as it starts.
        """
        task, cluster = self.config.task, self.config.cluster
        if self.sweep:
            return sweep_of(task, self.overrides, self.folder, cluster)
        return plan_of(TaskRequest(task, self.arguments, self.task_config(), cluster))

    def _check_options(self) -> None:
        cluster = self.config.cluster
        if cluster.card:
            find_card(cluster.card)
        if cluster.link:
            find_network(cluster.link)
        if self.follow and (cluster.name == "local" or cluster.dry_run):
            raise ConfigurationError(
                "--follow shows the log of a Slurm job: leave it out"
                + (", or take cluster=slurm" if cluster.name == "local" else " of a dry run")
            )
        if self.sweep and (self.print_config or self.print_run):
            raise ConfigurationError(
                "--print-config and --print-run are for one run: leave out --sweep, or see all "
                "with python -m t2i_hpc.status SWEEP"
            )


@dataclass(frozen=True)
class TaskRequest:
    """A task to run.

    Attributes:
        task: its name.
        arguments: its command line, with ``--config-dir=…``.
        config: what they compose to.
        cluster: where it runs.
    """

    task: str
    arguments: tuple[str, ...]
    config: Any
    cluster: ClusterConfig

    def work(self, folder: Path, *more: str, merge_gpus: int | None = None) -> Work:
        """Return the work of these arguments, and some more."""
        return Work(self.task, (*self.arguments, *more), folder, merge_gpus)


def plan_of(request: TaskRequest) -> Plan:
    """Return what is to be submitted for a task.

    Raises:
        UserError: whatever the task would refuse as soon as it starts.
    """
    return _PLANNERS[request.task](request)


def sweep_of(
    task: str, overrides: Sequence[str], folder: Path | None, cluster: ClusterConfig
) -> Plan:
    """Return the works of a sweep that are still to be done, perhaps none.

    Raises:
        UserError: no sweep, or whatever one of its points would be refused for.
    """

    def locate(config: TrainConfig) -> Path:
        return check_training(task, config, cluster.ranks)

    if task not in ("train", "pretrain"):
        raise ConfigurationError(f"--sweep takes task=train or task=pretrain, not task={task}")
    return plan_sweep(task, overrides, folder, locate, write=not cluster.dry_run)


def check_training(task: str, config: TrainConfig, ranks: int) -> Path:
    """Validate data and numbers of a training; return its run directory.

    Raises:
        UserError: data or weights are missing, or the ranks cannot divide the batch.
    """
    from t2i_hpc import pretrain, train
    from t2i_hpc.data.sampler import RankSlice
    from t2i_hpc.data.split import Split

    check = pretrain.check_start if task == "pretrain" else train.check_start
    RankSlice(config.engine.batch_size, 0, ranks)
    folder = check(config, ranks)
    Split.open(config.data, config.data.test_split)
    return folder


def _training(request: TaskRequest) -> Plan:
    folder = check_training(request.task, request.config, request.cluster.ranks)
    return Plan(folder.name, (request.work(folder),), folder)


def _evaluation(request: TaskRequest) -> Plan:
    from t2i_hpc.evaluation.build import comparisons
    from t2i_hpc.evaluation.missing import missing_shards

    config: EvaluateConfig = request.config
    if is_sweep(Path(config.run)):
        return _evaluations(request)
    first = next(iter(comparisons(config)))
    folder, settings = first.output, config.evaluation
    pinned = () if config.images else _pinned(Path(config.run), config.checkpoint)
    name = f"evaluate-{folder.name}"
    gpus = _gpus_of_merge(config)
    if settings.merge:
        return Plan(name, (request.work(folder, *pinned, merge_gpus=gpus),), folder)
    whole = Plan(name, (request.work(folder, *pinned),), folder)  # its ranks share the shards
    if settings.shard is not None or request.cluster.name == "local":
        return whole
    count = max(settings.shards, request.cluster.ranks)  # of a job whose ranks share the shards
    shards = [
        request.work(folder, *pinned, f"evaluation.shard={shard}")
        for shard in missing_shards(config, count)
    ]
    more = () if count == settings.shards else (f"evaluation.shards={count}",)
    merge = request.work(folder, *pinned, *more, "evaluation.merge=true", merge_gpus=gpus)
    if not shards:
        return Plan(name, (merge,), folder)
    if settings.shards == 1 or request.cluster.ranks > 1:
        return whole
    return Plan(name, tuple(shards), folder, merge)


def _evaluations(request: TaskRequest) -> Plan:
    """Return one work for each run of a sweep that lacks a score; its ranks share the shards."""
    from t2i_hpc.evaluation.build import comparisons
    from t2i_hpc.launching.sweep_evaluation import arguments_for, unscored_runs

    config: EvaluateConfig = request.config
    sweep = Path(config.run)
    left = unscored_runs(config, comparisons)
    if told := left.text(sweep):
        say(told, sys.stderr)
    works = tuple(
        Work(
            request.task,
            (*arguments_for(run, request.arguments), *_pinned(run, config.checkpoint)),
            run,
        )
        for run in left.runs
    )
    return Plan(f"evaluate-{sweep.name}", works, sweep)


def _gpus_of_merge(config: EvaluateConfig) -> int:
    """Return how many GPUs have something to do in a merge: features are compared on one."""
    from t2i_hpc.evaluation.metrics import WITH_FEATURES

    return int(config.device != "cpu" and bool(WITH_FEATURES & {*config.evaluation.metrics}))


def _pinned(run: Path, checkpoint: str) -> tuple[str, ...]:
    """Return an override that names the checkpoints: shards that run later take the same ones.

    A training that continues meanwhile makes newer ones.
    """
    if checkpoint not in ("latest", "all"):
        return ()
    there = list_checkpoints(run)
    chosen = there if checkpoint == "all" else [max(there)]
    numbers = ",".join(map(str, chosen))
    return (f"checkpoint={quoted(numbers) if len(chosen) > 1 else numbers}",)


def _shards(request: TaskRequest) -> Plan:
    from t2i_hpc.data.build.split_writer import check_source

    config: ShardsConfig = request.config
    folder = Path(config.index or config.output)
    partitions = request.cluster.build_partitions
    if not (config.index or config.output):
        raise DataError("output= is missing: name the folder to write, e.g. shards/mine")
    if (folder / config.split).exists():
        raise DataError(
            f"{folder / config.split} is there already: delete that folder to build it again"
        )
    whole = partitions == 1 or config.partition or request.cluster.name == "local"
    check_source(config if whole else replace(config, partition=f"1/{partitions}"))
    name = f"shards-{folder.name}-{config.split}"
    if whole:
        return Plan(name, (request.work(folder),), folder)
    if request.cluster.ranks > 1:
        raise ConfigurationError(
            f"a build partition is the work of one task, not of {request.cluster.ranks}: take "
            "cluster.nodes=1 cluster.tasks_per_node=1, and more cluster.build_partitions"
        )
    works = [
        request.work(folder, f"partition={number + 1}/{partitions}") for number in range(partitions)
    ]
    merged = folder if config.test_fraction else folder / config.split
    merge = Work(request.task, ("merge", str(merged)), folder, merge_gpus=0)
    return Plan(name, tuple(works), folder, merge)


def _generation(request: TaskRequest) -> Plan:
    config: GenerateConfig = request.config
    if config.images_per_caption is None:
        return _of_run(request)
    from t2i_hpc.sampling.bulk import BulkJob

    job = BulkJob.of(config)
    pinned = _pinned(Path(config.run), config.checkpoint)
    name, folder = f"generate-{job.folder.name}", job.folder
    whole = Plan(name, (request.work(folder, *pinned),), folder)  # its ranks share the shards
    alone = config.shard is not None or config.shards == 1 or request.cluster.ranks > 1
    # Without a missing image one work writes the index, which whoever ends last writes otherwise.
    missing = [] if alone or request.cluster.name == "local" else job.missing_shards()
    works = tuple(request.work(folder, *pinned, f"shard={shard}") for shard in missing)
    return Plan(name, works, folder) if works else whole


def _of_run(request: TaskRequest) -> Plan:
    from t2i_hpc.runs.run_directory import open_run

    config: GenerateConfig | ReportConfig = request.config
    folder = Path(config.run)
    open_run(folder)
    return Plan(f"{request.task}-{folder.name}", (request.work(folder),), folder)


_PLANNERS: Mapping[str, Callable[[TaskRequest], Plan]] = {
    "train": _training,
    "pretrain": _training,
    "evaluate": _evaluation,
    "shards": _shards,
    "generate": _generation,
    "report": _of_run,
}
