"""A run directory as training leaves it, with untrained, narrow networks."""

from __future__ import annotations

from pathlib import Path

import torch

from t2i_hpc.config.data import DataConfig
from t2i_hpc.config.system import DAMSMConfig, SSAGANConfig, TextEncoderConfig
from t2i_hpc.config.tasks import TrainConfig
from t2i_hpc.data.split import Split
from t2i_hpc.engine.checkpoints.checkpoint import Progress
from t2i_hpc.engine.checkpoints.writing import save_checkpoint
from t2i_hpc.engine.run_directory import prepare_run
from t2i_hpc.systems import build_system


def make_run(folder: Path, shards: Path, checkpoints: tuple[int, ...] = (100, 200)) -> Path:
    """Write a run over `shards` whose checkpoints have different weights; returns `folder`."""
    system_config = SSAGANConfig(
        resolution=64,
        generator_width=2,
        discriminator_width=2,
        mask_width=4,
        noise_width=8,
        text_encoder=TextEncoderConfig(width=8, embedding_width=6),
        damsm=DAMSMConfig(weight=0.0),
    )
    config = TrainConfig(data=DataConfig(path=str(shards)), system=system_config)
    vocabulary = Split.open(config.data, "train").vocabulary
    prepare_run(folder, config, 1, torch.device("cpu"))
    for images in checkpoints:
        torch.manual_seed(images)
        system = build_system(system_config, vocabulary.size)
        save_checkpoint(folder, system.modules, {}, Progress(images, images // 10, 1.0))
    return folder
