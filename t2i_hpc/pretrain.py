"""Command: pre-train DAMSM's text and image encoders."""

from __future__ import annotations

import sys
from pathlib import Path

from t2i_hpc.cli.command import Command
from t2i_hpc.common.errors import STOPPED
from t2i_hpc.config.tasks import TrainConfig
from t2i_hpc.training import session


def pretrain(config: TrainConfig) -> int:
    """Train the encoders to the end or to a request to stop; return the exit code."""
    return session.train(session.with_epoch(config))


def locate(config: TrainConfig) -> Path:
    """Return the run directory of a configuration, whether it exists or not."""
    return session.locate(session.with_epoch(config))


def check_start(config: TrainConfig, ranks: int = 1) -> Path:
    """Check what a training would refuse as soon as it starts; return its run directory."""
    return session.check_start(session.with_epoch(config), ranks)


COMMAND = Command(
    "pretrain",
    "Trains the text and image encoders on real pairs by DAMSM: the same loop, checkpoints and\n"
    "resume as training. The run's text_encoder.safetensors is what training takes as\n"
    f"system.text_encoder.weights. Ctrl-C saves and exits with code {STOPPED}.",
    TrainConfig,
    pretrain,
    (
        "python -m t2i_hpc.pretrain experiment=demo_encoders",
        "torchrun --nproc-per-node 4 -m t2i_hpc.pretrain experiment=cub_encoders "
        "system.image_encoder.imagenet_weights=inception_v3.pth",
    ),
    locate,
)

if __name__ == "__main__":
    sys.exit(COMMAND.main())
