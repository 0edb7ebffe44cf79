"""A run directory as training leaves it, with untrained, narrow networks."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file

from t2i_hpc.config.data import DataConfig
from t2i_hpc.config.encoder_settings import DAMSMConfig, TextEncoderConfig
from t2i_hpc.config.one_stage_settings import SSAGANConfig
from t2i_hpc.config.tasks import TrainConfig
from t2i_hpc.data.split import Split
from t2i_hpc.models.image_encoder import build_image_encoder
from t2i_hpc.models.text_encoder import LSTMTextEncoder
from t2i_hpc.runs.checkpoint import TrainingProgress
from t2i_hpc.runs.run_directory import open_run, prepare_run
from t2i_hpc.systems import build_system
from tests.support.checkpoints import save_checkpoint


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
        save_checkpoint(folder, system.modules, {}, TrainingProgress(images, images // 10, 1.0))
    return folder


def write_encoders(run: Path, width: int = 8, embedding: int = 6) -> list[str]:
    """Write DAMSM encoders with random weights; return the settings that name them."""
    torch.manual_seed(1)
    vocabulary = Split.open(open_run(run).data, "train").vocabulary
    made = {
        "text": LSTMTextEncoder(vocabulary.size, width, embedding),
        "image": build_image_encoder("efficientnet_lite0", width),
    }
    for name, network in made.items():
        whole = {key: value.contiguous() for key, value in network.state_dict().items()}
        save_file(whole, run / f"{name}.safetensors")
    return [f"evaluation.{name}_encoder={run / name}.safetensors" for name in made]
