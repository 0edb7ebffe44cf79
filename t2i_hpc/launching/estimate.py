"""What a training will take, said before it is submitted: hours, starts, checkpoints, disk.

The speed is the run's own where it has measured one. Else a step is counted and timed by the
figures of the card that the job asks for; of a card that is not in the table nothing is said.
An estimate never keeps a job from being submitted.
"""

from __future__ import annotations

import math
import re
import shutil
import statistics
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from t2i_hpc.cli.command import split_options
from t2i_hpc.cluster.hardware import Card, find_card, find_network, links, recognize_card
from t2i_hpc.cluster.jobs import Plan, Work
from t2i_hpc.cluster.slurm.validation import minutes_of
from t2i_hpc.common.errors import RunError
from t2i_hpc.common.files import read_json_lines
from t2i_hpc.config.cluster import ClusterConfig
from t2i_hpc.config.compose import compose_config
from t2i_hpc.config.tasks import TASK_SCHEMAS, TrainConfig
from t2i_hpc.reporting.run_status import duration
from t2i_hpc.runs.checkpoint import FROZEN, read_state
from t2i_hpc.runs.layout import newest_images
from t2i_hpc.runs.sessions import read_sessions
from t2i_hpc.systems.base import System, trainable

_TRAININGS = ("train", "pretrain")
_SPEED_LINES = 50


@dataclass(frozen=True)
class Speed:
    """Images per second, None where nobody knows; and where the figure is from, or why not."""

    images_per_second: float | None
    source: str


@dataclass(frozen=True)
class Sizes:
    """Bytes of each checkpoint, and of the frozen networks that all share."""

    each: int
    once: int


def estimate(plan: Plan, cluster: ClusterConfig) -> list[str]:
    """Return lines on the first training of a plan; none where it holds no training."""
    if not plan.works or plan.works[0].task not in _TRAININGS:
        return []
    work = plan.works[0]
    config = _config_of(work)
    speed = measured_speed(work.folder) or predicted_speed(config, cluster)
    count = f", each of {len(plan.works)}" if len(plan.works) > 1 else ""
    lines = [
        f"estimate{count}: {_hours(config, work.folder, speed, cluster)}",
        *_disk(config, work.folder, speed),
    ]
    return [*lines, *_warning(config, speed, cluster)]


def measured_speed(run: Path) -> Speed | None:
    """Return what a run's last lines of metrics.jsonl say; None where it has none."""
    lines = read_json_lines(run / "metrics.jsonl")[-_SPEED_LINES:]
    speeds = [line["images_per_second"] for line in lines if "images_per_second" in line]
    sessions = read_sessions(run)
    if not speeds or not sessions:
        return None
    ranks = sessions[-1].ranks
    return Speed(statistics.median(speeds), f"measured by this run on {_ranks(ranks)}")


def predicted_speed(config: TrainConfig, cluster: ClusterConfig) -> Speed:
    """Return what a counted step gives on the card that a job asks for."""
    card = card_of(cluster)
    if card is None:
        return Speed(None, "unknown card: no hours (set cluster.card, e.g. h100)")
    try:
        return _counted_speed(config, cluster, card)
    except Exception as error:  # user-defined systems may depend on numbers; the job may run
        return Speed(None, f"no hours: a step cannot be counted ({type(error).__name__}: {error})")


def card_of(cluster: ClusterConfig) -> Card | None:
    """Return the card that a job asks for by name, type or feature; None: not known."""
    if cluster.card:
        return find_card(cluster.card)
    if not cluster.gpus_per_node:
        return None
    named = [cluster.gpu_type, *re.split(r"[^\w-]+", cluster.constraint)]
    return next((card for card in map(recognize_card, filter(None, named)) if card), None)


def _counted_speed(config: TrainConfig, cluster: ClusterConfig, card: Card) -> Speed:
    from t2i_hpc.launching.prediction import Cluster, predict
    from t2i_hpc.training.cost import Captions
    from t2i_hpc.training.step_count import count_operations

    outline, vocabulary = _outline(config)
    if outline is None:
        return Speed(None, "no hours: a step cannot be counted (the system has no outline)")
    engine = replace(config.engine, optimizer="fused")  # what auto is on a GPU
    each = engine.batch_size // cluster.ranks
    captions = Captions(config.data.max_tokens, vocabulary)
    count = count_operations(outline, engine, captions, each, cluster.ranks)
    network = find_network(cluster.link) if cluster.link else None
    ranks = Cluster(card, links()[card.node_link], network, cluster.tasks_of_node)
    made = predict(count, ranks, engine.precision)
    free = "" if cluster.nodes == 1 or network else ", the network between nodes left out"
    source = f"counted for {cluster.ranks} {card.name}, not measured{free}"
    return Speed(made.images_per_second, source)


def _hours(config: TrainConfig, run: Path, speed: Speed, cluster: ClusterConfig) -> str:
    left = max(0, config.engine.images - (newest_images(run) or 0))
    if speed.images_per_second is None:
        return f"{left:,} images to train on; {speed.source}"
    seconds = left / speed.images_per_second
    limit = config.engine.minutes
    cap = f", or engine.minutes={limit:g}" if limit and 60 * limit < seconds else ""
    start = 60 * minutes_of(cluster.time) - cluster.stop_before
    starts = max(1, math.ceil(seconds / start))
    return (
        f"{left:,} images in {duration(seconds)}{cap} at {_rounded(speed.images_per_second)} img/s "
        f"({speed.source}), {starts} start{'s' * (starts > 1)} of {cluster.time}"
    )


def _disk(config: TrainConfig, run: Path, speed: Speed) -> list[str]:
    """Return a line on checkpoints: size, how many are written and stay, and the disk they fill."""
    sizes = checkpoint_sizes(config, run)
    if sizes is None:
        return []
    kept = config.engine.checkpoint.keep + config.engine.checkpoint.keep_best
    milestones = config.engine.checkpoint.milestones
    kept += config.engine.images // milestones if milestones else 0
    written = _written(config, run, speed)
    kept = min(kept, written) if written else kept
    total = kept * sizes.each + sizes.once
    there = next(folder for folder in (run, *run.resolve().parents) if folder.exists())
    free = shutil.disk_usage(there).free
    many = f"about {written:,} written, " if written else ""
    size = f"checkpoints of {sizes.each / 1e9:.3g} GB"
    lines = [f"  {size}, {many}{kept:,} kept: {total / 1e9:.3g} GB on disk"]
    # One more is there while it is written.
    if free < total + sizes.each:
        lines.append(
            f"  warning: the disk of {there} has {free / 1e9:.3g} GB left; make room, or lower "
            "engine.checkpoint.keep"
        )
    return lines


def checkpoint_sizes(config: TrainConfig, run: Path) -> Sizes | None:
    """Return the sizes of a run's checkpoints: of the newest, else by the system's shapes."""
    images = newest_images(run)
    if images is not None:
        try:
            files = read_state(run, images).state["files"]
        except RunError:
            files = {}
        if files:
            once = files.get(FROZEN, {}).get("bytes", 0)
            return Sizes(sum(file["bytes"] for file in files.values()) - once, once)
    try:
        outline, _ = _outline(config)
    except Exception:  # an estimate keeps no job from being submitted
        return None
    return None if outline is None else sizes_by_shapes(outline)


def sizes_by_shapes(system: System) -> Sizes:
    """Return the sizes of a system's checkpoints, but for the names in them."""
    from t2i_hpc.training.checkpoints.writing import split_frozen

    weights, frozen = split_frozen(system, system.modules.state_dict())
    trained = [p for module in system.trainable.values() for _, p in trainable(module)]
    return Sizes(_bytes(weights) + sum(2 * 4 * p.numel() for p in trained), _bytes(frozen))


def _written(config: TrainConfig, run: Path, speed: Speed) -> int | None:
    """Return about how many checkpoints a training writes from now on; None: not known."""
    if speed.images_per_second is None:
        return None
    left = max(0, config.engine.images - (newest_images(run) or 0))
    return max(1, math.ceil(left / speed.images_per_second / _seconds_between(config, speed)))


def _seconds_between(config: TrainConfig, speed: Speed) -> float:
    """Return the longest time between two checkpoints, in seconds."""
    checkpoint = config.engine.checkpoint
    longest = 60 * checkpoint.every_minutes
    if speed.images_per_second is None:
        return longest
    return min(longest, checkpoint.every_images / speed.images_per_second)


def _warning(config: TrainConfig, speed: Speed, cluster: ClusterConfig) -> list[str]:
    """Warn of a start that ends before its first checkpoint is due."""
    between = _seconds_between(config, speed)
    if 60 * minutes_of(cluster.time) - cluster.stop_before > between:
        return []
    return [
        f"  warning: a start of {cluster.time} ends before its first checkpoint is due, "
        f"{duration(between)} after it begins, so only the stop saves: take a longer "
        "cluster.time, or fewer engine.checkpoint.every_minutes"
    ]


def _config_of(work: Work) -> TrainConfig:
    options, overrides = split_options(work.arguments)
    config: TrainConfig = compose_config(
        work.task, overrides, TASK_SCHEMAS[work.task], options.folder
    )
    if work.task == "pretrain":
        from t2i_hpc.training.session import with_epoch

        return with_epoch(config)
    return config


def _outline(config: TrainConfig) -> tuple[System | None, int]:
    """Return the system without weights, or None; and the number of tokens of its data."""
    from t2i_hpc.data.training_data import open_training_data
    from t2i_hpc.systems import outline_system

    vocabulary = open_training_data(config.data, check_tars=False).vocabulary.size
    return outline_system(config.system, vocabulary), vocabulary


def _bytes(tensors: dict[str, Any]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def _ranks(count: int) -> str:
    return f"{count} rank{'s' * (count > 1)}"


def _rounded(speed: float) -> str:
    """Return a speed in three digits."""
    return f"{speed:,.0f}" if speed >= 100 else f"{speed:.3g}"
