"""From a task and its words to a plan, after the checks that the task itself would make.

A node that finds no data, no weights, or a batch that its ranks cannot divide costs a place in
the queue; so all of that is looked at first, where a person still sits before the screen.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from t2i_hpc.cluster.jobs import Plan, Work
from t2i_hpc.cluster.sweeps import plan_sweep
from t2i_hpc.common.errors import ConfigurationError, DataError
from t2i_hpc.config.cluster import ClusterConfig
from t2i_hpc.config.compose import quoted
from t2i_hpc.config.data import ShardsConfig
from t2i_hpc.config.tasks import EvaluateConfig, GenerateConfig, ReportConfig, TrainConfig
from t2i_hpc.runs.layout import list_checkpoints


@dataclass(frozen=True)
class Order:
    """A task as it was ordered.

    Attributes:
        task: its name.
        words: its command line, with ``--config-dir=…``.
        config: what they compose to.
        cluster: where it goes.
    """

    task: str
    words: tuple[str, ...]
    config: Any
    cluster: ClusterConfig

    def work(self, folder: Path, *more: str, merge_gpus: int | None = None) -> Work:
        """Return the work of these words, and some more."""
        return Work(self.task, (*self.words, *more), folder, merge_gpus)


def plan_of(order: Order) -> Plan:
    """Return what is to be submitted for an order.

    Raises:
        UserError: whatever the task would refuse as soon as it starts.
    """
    return _PLANNERS[order.task](order)


def sweep_of(task: str, words: Sequence[str], folder: Path | None, cluster: ClusterConfig) -> Plan:
    """Return the works of a sweep that are still to be done, perhaps none.

    Raises:
        UserError: no sweep, or whatever one of its points would be refused for.
    """

    def locate(config: TrainConfig) -> Path:
        return check_training(task, config, cluster.ranks)

    if task not in ("train", "pretrain"):
        raise ConfigurationError(f"--sweep takes task=train or task=pretrain, not task={task}")
    return plan_sweep(task, words, folder, locate, write=not cluster.dry_run)


def check_training(task: str, config: TrainConfig, ranks: int) -> Path:
    """Look at data and numbers of a training; return its run directory.

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


def _training(order: Order) -> Plan:
    folder = check_training(order.task, order.config, order.cluster.ranks)
    return Plan(folder.name, (order.work(folder),), folder)


def _evaluation(order: Order) -> Plan:
    from t2i_hpc.evaluation.scoring import comparisons, missing_shards

    config: EvaluateConfig = order.config
    first = next(iter(comparisons(config)))
    folder, settings = first.output, config.evaluation
    pinned = () if config.images else _pinned(Path(config.run), config.checkpoint)
    name = f"evaluate-{folder.name}"
    gpus = _gpus_of_merge(config)
    if settings.merge:
        return Plan(name, (order.work(folder, *pinned, merge_gpus=gpus),), folder)
    whole = Plan(name, (order.work(folder, *pinned),), folder)  # its ranks share the shards
    if settings.shard is not None or order.cluster.name == "local":
        return whole
    count = max(settings.shards, order.cluster.ranks)  # of a job with as many ranks
    shards = [
        order.work(folder, *pinned, f"evaluation.shard={shard}")
        for shard in missing_shards(config, count)
    ]
    more = () if count == settings.shards else (f"evaluation.shards={count}",)
    merge = order.work(folder, *pinned, *more, "evaluation.merge=true", merge_gpus=gpus)
    if not shards:
        return Plan(name, (merge,), folder)
    if settings.shards == 1 or order.cluster.ranks > 1:
        return whole
    return Plan(name, tuple(shards), folder, merge)


def _gpus_of_merge(config: EvaluateConfig) -> int:
    """Return how many GPUs have something to do in a merge: features are compared on one."""
    from t2i_hpc.evaluation.metrics import WITH_ROWS

    return int(config.device != "cpu" and bool(WITH_ROWS & {*config.evaluation.metrics}))


def _pinned(run: Path, checkpoint: str) -> tuple[str, ...]:
    """Return a word that names the checkpoints: shards that run later take the same ones.

    A training that goes on meanwhile makes newer ones.
    """
    if checkpoint not in ("latest", "all"):
        return ()
    there = list_checkpoints(run)
    chosen = there if checkpoint == "all" else [max(there)]
    numbers = ",".join(map(str, chosen))
    return (f"checkpoint={quoted(numbers) if len(chosen) > 1 else numbers}",)


def _shards(order: Order) -> Plan:
    from t2i_hpc.data.build.split_writer import check_source

    config: ShardsConfig = order.config
    folder, parts = Path(config.output), order.cluster.build_partitions
    if not config.output:
        raise DataError("output= is missing: name the folder to write, e.g. shards/mine")
    if (folder / config.split).exists():
        raise DataError(
            f"{folder / config.split} is there already: delete that folder to build it again"
        )
    check_source(config)
    name = f"shards-{folder.name}-{config.split}"
    if parts == 1 or config.partition or order.cluster.name == "local":
        return Plan(name, (order.work(folder),), folder)
    if order.cluster.ranks > 1:
        raise ConfigurationError(
            f"a part of the shards is the work of one task, not of {order.cluster.ranks}: take "
            "cluster.nodes=1 cluster.tasks_per_node=1, and more cluster.build_partitions"
        )
    works = [order.work(folder, f"partition={number + 1}/{parts}") for number in range(parts)]
    merged = folder if config.test_fraction else folder / config.split
    merge = Work(order.task, ("merge", str(merged)), folder, merge_gpus=0)
    return Plan(name, tuple(works), folder, merge)


def _of_run(order: Order) -> Plan:
    from t2i_hpc.runs.run_directory import open_run

    config: GenerateConfig | ReportConfig = order.config
    folder = Path(config.run)
    open_run(folder)
    return Plan(f"{order.task}-{folder.name}", (order.work(folder),), folder)


_PLANNERS: Mapping[str, Callable[[Order], Plan]] = {
    "train": _training,
    "pretrain": _training,
    "evaluate": _evaluation,
    "shards": _shards,
    "generate": _of_run,
    "report": _of_run,
}
