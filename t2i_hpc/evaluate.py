"""The command `evaluate`: score a run or a folder against real images, in any number of shards."""

from __future__ import annotations

import sys

from t2i_hpc.cli.command import Command
from t2i_hpc.common.errors import ConfigurationError
from t2i_hpc.config.engine import EngineConfig
from t2i_hpc.config.tasks import EvaluateConfig

# A rank whose shards are there already waits for the ranks that compute theirs.
_LONGEST_WAIT_SECONDS = 24 * 3600.0


def evaluate(config: EvaluateConfig) -> None:
    """Compute shards of partial statistics, or merge them, and print the scores."""
    from t2i_hpc.evaluation.sharded import compute_shards, merge_shards
    from t2i_hpc.training.world import choose_device, joined_world

    if config.evaluation.merge and config.evaluation.shard is not None:
        raise ConfigurationError(
            "evaluation.merge=true computes no shard: leave evaluation.shard out"
        )
    if config.evaluation.merge:
        # A merge may run on a node without the GPU that its shards were told to use.
        merge_shards(config, choose_device("cpu" if config.device == "cpu" else "auto"))
        return
    engine = EngineConfig(
        device=config.device, threads=config.threads, timeout=_LONGEST_WAIT_SECONDS
    )
    with joined_world(engine, "lower evaluation.batch_size") as world:
        compute_shards(config, world.device, world.rank, world.size, world.barrier)


COMMAND = Command(
    "evaluate",
    "Scores a run's generator, or a folder of images, against real ones, in shards if wanted:\n"
    "FID, Inception score, KID, MIND, CMMD, precision and recall, density and coverage,\n"
    "memorization, diversity, R-precision, CLIP score.",
    EvaluateConfig,
    evaluate,
    (
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
