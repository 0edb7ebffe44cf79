"""Command: pre-train DAMSM's text and image encoders."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

from t2i_hpc.cli.command import Command
from t2i_hpc.common.errors import STOPPED, ConfigurationError
from t2i_hpc.config.systems import DAMSMPretrainingConfig
from t2i_hpc.config.tasks import TrainConfig
from t2i_hpc.data.training_data import open_training_data
from t2i_hpc.training import session


def pretrain(config: TrainConfig) -> int:
    """Train the encoders to the end or to a request to stop; return the exit code."""
    return session.train(with_epoch(config))


def locate(config: TrainConfig) -> Path:
    """Return the run directory of a configuration, whether it exists or not."""
    return session.locate(with_epoch(config))


def check_start(config: TrainConfig, ranks: int = 1) -> Path:
    """Check what a training would refuse as soon as it starts; return its run directory."""
    return session.check_start(with_epoch(config), ranks)


def with_epoch(config: TrainConfig) -> TrainConfig:
    """Fill in the length of an epoch, which the learning rate follows, from the training split.

    Raises:
        ConfigurationError: the system is none of encoders, or the data has no known length.
    """
    system = config.system
    if not isinstance(system, DAMSMPretrainingConfig):
        raise ConfigurationError(
            f"system={system.name} is trained by t2i_hpc.train: pretrain takes system=damsm"
        )
    if system.epoch_images is not None:
        return config
    samples = open_training_data(config.data, check_tars=False).epoch("system.epoch_images")
    return replace(config, system=replace(system, epoch_images=samples))


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
