"""The door `evaluate`: score a run or a folder against real images, in any number of parts."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from t2i_hpc.cli.command import Command
from t2i_hpc.common.errors import ConfigurationError
from t2i_hpc.common.terminal import say
from t2i_hpc.config.engine import EngineConfig
from t2i_hpc.config.tasks import EvaluateConfig

if TYPE_CHECKING:
    from t2i_hpc.evaluation.comparison import Comparison
    from t2i_hpc.training.world import World

# A rank whose parts are there already waits for the ranks that compute theirs.
_LONGEST_WAIT_SECONDS = 24 * 3600.0


def run(config: EvaluateConfig) -> None:
    """Evaluate what the configuration names, in this rank's share."""
    settings = config.evaluation
    if settings.merge and settings.shard is not None:
        raise ConfigurationError(
            "evaluation.merge=true computes no shard: leave evaluation.shard out"
        )
    if settings.merge:
        _merge(config)
    else:
        _compute_in_ranks(config)


def _compute_in_ranks(config: EvaluateConfig) -> None:
    from t2i_hpc.evaluation.scoring import comparisons
    from t2i_hpc.training.world import joined_world

    settings = config.evaluation
    engine = EngineConfig(
        device=config.device, threads=config.threads, timeout=_LONGEST_WAIT_SECONDS
    )
    with joined_world(engine, "lower evaluation.batch_size") as world:
        # No rank is idle; the number of shards moves no score.
        shards = settings.shards if settings.shard is not None else max(settings.shards, world.size)
        compared = comparisons(config, device=world.device, shards=shards)
        _compute(config, compared, shards, world)


def _compute(
    config: EvaluateConfig, compared: Iterable[Comparison], shards: int, world: World
) -> None:
    from t2i_hpc.evaluation.detectors.registry import build_detector
    from t2i_hpc.evaluation.partial_statistics import parts_of_rank

    detector = None
    for comparison in compared:
        # Only now: what is compared was checked, and that may have refused the whole.
        detector = detector or build_detector(config.evaluation, world.device)
        if config.evaluation.shard is not None:
            _say_if_empty(comparison, config.evaluation.shard)
            comparison.compute([config.evaluation.shard], detector)
            continue
        comparison.compute(parts_of_rank(shards, world.rank, world.size), detector)
        world.barrier()
        if world.is_main:
            _report(comparison, config)


def _merge(config: EvaluateConfig) -> None:
    import torch

    from t2i_hpc.evaluation.scoring import comparisons, refuse_missing
    from t2i_hpc.training.world import choose_device

    if config.threads:
        torch.set_num_threads(config.threads)
    # A merge may run on a node without the GPU that its shards were told to use.
    device = choose_device("cpu" if config.device == "cpu" else "auto")
    for comparison in comparisons(config, device=device):
        refuse_missing(comparison, config)
        _report(comparison, config)


def _say_if_empty(comparison: Comparison, shard: int) -> None:
    """Say that a shard has nothing to do, which looks like success otherwise."""
    division = comparison.division
    for side in comparison.sides:
        if not division.range_of(side.target, shard):
            batches = -(-side.target.images // division.batch_size)
            say(
                f"shard {shard} of {division.parts} has no {side.target.side} images: "
                f"{side.target.images:,} images are {batches} batches of {division.batch_size}, "
                "and a shard is whole batches",
                sys.stderr,
            )


def _report(comparison: Comparison, config: EvaluateConfig) -> None:
    from t2i_hpc.evaluation.protocol import WITH_REAL
    from t2i_hpc.evaluation.scores import few_images_warning, score_line

    for row in comparison.score():
        say(json.dumps(row, sort_keys=True) if config.json else score_line(row))
    if "fid" in comparison.metrics:
        _warn(few_images_warning(comparison.protocol))
    _warn(_lossy(config.images))
    if WITH_REAL & {*comparison.metrics}:
        _warn(comparison.warning)


def _lossy(folder: str) -> str | None:
    """Return a warning where generated images went through JPEG."""
    from t2i_hpc.evaluation.image_sets import ImageFolder

    count = ImageFolder(Path(folder)).lossy if folder else 0
    return f"{count:,} images of {folder} are JPEG: compression moves a score" if count else None


def _warn(text: str | None) -> None:
    if text:
        say(f"warning: {text}", sys.stderr)


COMMAND = Command(
    task="evaluate",
    summary="Scores a run's generator, or a folder of images, against real ones, by parts if\n"
    "wanted: FID, Inception score, KID, precision and recall, R-precision, CLIP score.",
    config=EvaluateConfig,
    run=run,
    examples=(
        "python -m t2i_hpc.evaluate run=runs/demo-1a2b3c4d evaluation=demo",
        "python -m t2i_hpc.evaluate run=runs/coco-1a2b3c4d checkpoint=all "
        "evaluation=literature_coco",
        "python -m t2i_hpc.evaluate run=runs/coco-1a2b3c4d evaluation.shards=16 evaluation.shard=3",
        "python -m t2i_hpc.evaluate run=runs/coco-1a2b3c4d evaluation.shards=16 "
        "evaluation.merge=true",
        "python -m t2i_hpc.evaluate images=mine reference=real evaluation.images=1000",
    ),
)

if __name__ == "__main__":
    sys.exit(COMMAND.main())
