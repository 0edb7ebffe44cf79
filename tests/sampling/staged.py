"""A run in memory, small and untrained: of a staged system, or of any."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from t2i_hpc.config.encoder_settings import DAMSMConfig, TextEncoderConfig
from t2i_hpc.config.gan_settings import SystemConfig
from t2i_hpc.config.staged_settings import StagedGANConfig
from t2i_hpc.config.tasks import TrainConfig
from t2i_hpc.data.captions import Vocabulary
from t2i_hpc.sampling.chosen_weights import ChosenWeights
from t2i_hpc.sampling.trained_run import TrainedRun
from t2i_hpc.systems import build_system
from t2i_hpc.systems.base import TextToImageSystem


def staged_run(name: str, captions: Sequence[str]) -> TrainedRun:
    """Return a run of two stages, 16 and 32 px, that knows the words of some captions."""
    return run_of(
        StagedGANConfig(
            name=name,
            stages=["initial", "memory" if name == "dm_gan" else "attention"],
            resolution=32,
            generator_width=4,
            discriminator_width=2,
            noise_width=4,
            condition_width=4,
            text_encoder=TextEncoderConfig(width=8, embedding_width=6),
            damsm=DAMSMConfig(weight=0.0),
        ),
        captions,
    )


def run_of(settings: SystemConfig, captions: Sequence[str]) -> TrainedRun:
    """Return a run of any system that knows the words of some captions."""
    config = TrainConfig(system=settings)
    vocabulary = Vocabulary.from_captions(captions)
    torch.manual_seed(1)
    system = build_system(config.system, vocabulary.size)
    assert isinstance(system, TextToImageSystem)
    weights = ChosenWeights(Path("none"), "0" * 64, 0)
    return TrainedRun(Path("none"), config, weights, system, vocabulary, torch.device("cpu"))
