"""The door `evaluate`: score a run's generator against real images, in any number of parts."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from t2i_hpc.common.errors import EvaluationError
from t2i_hpc.config.data import DataConfig
from t2i_hpc.config.door import Door
from t2i_hpc.config.engine import EngineConfig
from t2i_hpc.config.evaluation import EvaluationConfig
from t2i_hpc.config.tasks import EvaluateConfig

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch
    from torch import Tensor

    from t2i_hpc.data.split import Split
    from t2i_hpc.generation.trained import TrainedRun
    from t2i_hpc.metrics.comparison import Comparison
    from t2i_hpc.metrics.detectors.base import Detector
    from t2i_hpc.metrics.protocol import Protocol

# A rank whose parts are there already waits for the ranks that compute theirs.
_LONGEST_WAIT_SECONDS = 24 * 3600.0


def run(config: EvaluateConfig) -> None:
    """Evaluate the checkpoints that the configuration names, in this rank's share."""
    from t2i_hpc.engine.run_directory import open_run
    from t2i_hpc.engine.world import joined_world
    from t2i_hpc.metrics.detectors.registry import build_detector
    from t2i_hpc.metrics.parts import parts_of_rank

    settings, folder = config.evaluation, Path(config.run)
    _check_shard(settings)
    real = _real_split(open_run(folder).data, settings)
    engine = EngineConfig(
        device=config.device, threads=config.threads, timeout=_LONGEST_WAIT_SECONDS
    )
    with joined_world(engine) as world:
        settings = _with_a_shard_a_rank(settings, world.size)
        detector = build_detector(settings, world.device)
        for trained in _trained_runs(folder, config.checkpoint, world.device):
            comparison = _comparison(folder, trained, real, detector, settings)
            if settings.shard is not None:
                comparison.compute([settings.shard])
                continue
            comparison.compute(parts_of_rank(settings.shards, world.rank, world.size))
            world.barrier()
            if world.is_main:
                _report(comparison)


def _check_shard(settings: EvaluationConfig) -> None:
    from t2i_hpc.metrics.parts import part_range

    if settings.shard is not None:
        part_range(settings.images, settings.shards, settings.shard)


def _with_a_shard_a_rank(settings: EvaluationConfig, ranks: int) -> EvaluationConfig:
    """Return settings under which no rank is idle; the number of shards moves no score."""
    if settings.shard is not None:
        return settings
    return dataclasses.replace(settings, shards=max(settings.shards, ranks))


def _real_split(data: DataConfig, settings: EvaluationConfig) -> Split:
    from t2i_hpc.data.split import Split

    if settings.data:
        data = dataclasses.replace(data, path=settings.data)
    split = Split.open(data, settings.split)
    wanted = settings.real_images or 2
    if split.count < wanted:
        raise EvaluationError(
            f"the split {settings.split!r} of {data.path} has {split.count} images, fewer than "
            f"the {wanted} real images asked for: take a smaller evaluation.real_images or "
            "another evaluation.split"
        )
    return split


def _trained_runs(folder: Path, checkpoint: str, device: torch.device) -> Iterator[TrainedRun]:
    from t2i_hpc.generation.trained import TrainedRun

    names = [checkpoint]
    if checkpoint == "all":
        names = [str(images) for images in TrainedRun.checkpoints(folder)]
        if not names:
            raise EvaluationError(f"{folder} has no checkpoint yet: train first")
    for name in names:
        yield TrainedRun.open(folder, name, device)


def _comparison(
    folder: Path, trained: TrainedRun, real: Split, detector: Detector, settings: EvaluationConfig
) -> Comparison:
    from t2i_hpc.metrics.comparison import Comparison, Subject
    from t2i_hpc.metrics.evaluate import Division, spread

    protocol = _protocol(trained, real, detector, settings)

    def draw(numbers: range) -> Tensor:
        return trained.draw(numbers, protocol.seed, protocol.split)

    def draw_real(numbers: range) -> Tensor:
        indices = spread(numbers, protocol.real_images, real.count)
        return real.evaluation_images(indices, protocol.resolution)

    subject = Subject(trained.checkpoint_sha256, trained.images_seen, draw)
    division = Division(settings.shards, settings.batch_size)
    return Comparison(folder, subject, draw_real, detector, protocol, division)


def _protocol(
    trained: TrainedRun, real: Split, detector: Detector, settings: EvaluationConfig
) -> Protocol:
    from t2i_hpc.data.split import Split
    from t2i_hpc.metrics.protocol import Protocol

    return Protocol(
        data=real.manifest.digest,
        captions=Split.open(trained.config.data, settings.split).manifest.digest,
        split=settings.split,
        images=settings.images,
        real_images=settings.real_images or real.count,
        resolution=trained.resolution,
        detector=detector.name,
        detector_sha256=detector.sha256,
        preprocessing=detector.preprocessing,
        seed=settings.seed,
    )


def _report(comparison: Comparison) -> None:
    from t2i_hpc.metrics.scores import few_images_warning, score_line

    print(score_line(comparison.score()), flush=True)
    if warning := few_images_warning(comparison.protocol.images):
        print(f"warning: {warning}", file=sys.stderr)


DOOR = Door(
    task="evaluate",
    summary="Score a run's generator: distance of its images to real ones, by parts if wanted.",
    config=EvaluateConfig,
    run=run,
    examples=(
        "python -m t2i_hpc.evaluate run=runs/demo-1a2b3c4d evaluation=demo",
        "python -m t2i_hpc.evaluate run=runs/coco-1a2b3c4d checkpoint=all evaluation.images=30000",
        "python -m t2i_hpc.evaluate run=runs/coco-1a2b3c4d evaluation.shards=16 evaluation.shard=3",
    ),
)

if __name__ == "__main__":
    sys.exit(DOOR.open())
