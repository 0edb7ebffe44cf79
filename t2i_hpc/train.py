"""Command: train a system on shards, from the beginning or from its newest checkpoint."""

from __future__ import annotations

import sys

from t2i_hpc.cli.command import Command
from t2i_hpc.common.errors import LOST_RANK, OUT_OF_MEMORY, STOPPED
from t2i_hpc.config.tasks import TrainConfig
from t2i_hpc.training.session import check_start, locate, train

__all__ = ["COMMAND", "check_start", "locate", "train"]

COMMAND = Command(
    "train",
    "Trains a text-to-image system on shards. The same command finds its run again and resumes\n"
    "it. Ctrl-C, a closed terminal, SIGTERM, SIGUSR1, SIGUSR2 or a file `stop` in the run\n"
    f"directory: saves and exits with code {STOPPED}; a file `save` there: saves and trains on.\n"
    f"Exit code {LOST_RANK}: a rank was lost. After either the same command resumes the run.\n"
    f"Exit code {OUT_OF_MEMORY}: out of memory, a GPU's or the machine's.",
    TrainConfig,
    train,
    (
        "python -m t2i_hpc.train experiment=demo engine.minutes=5",
        "torchrun --nproc-per-node 8 -m t2i_hpc.train experiment=coco_ssagan seed=2",
    ),
    locate,
)

if __name__ == "__main__":
    sys.exit(COMMAND.main())
