"""A run's networks at one of its checkpoints, ready to draw."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from t2i_hpc.common.errors import RunError
from t2i_hpc.common.seeds import noise
from t2i_hpc.common.step import Painter, Pictures
from t2i_hpc.config.tasks import TrainConfig
from t2i_hpc.data.split import Split
from t2i_hpc.engine.checkpoints.checkpoint import (
    Checkpoint,
    choose_checkpoint,
    list_checkpoints,
    load_weights,
)
from t2i_hpc.engine.run_directory import open_run
from t2i_hpc.generation.captions import encode_captions
from t2i_hpc.systems import build_system


@dataclass(frozen=True)
class TrainedRun:
    """Draws pictures with a checkpoint of a run.

    Attributes:
        run: the run directory.
        config: what it was trained with.
        checkpoint: which weights are loaded.
        system: the networks, on `device`, in evaluation mode while drawing.
        held_out: the test split of the run's data, with the vocabulary.
    """

    run: Path
    config: TrainConfig
    checkpoint: Checkpoint
    system: Painter
    held_out: Split
    device: torch.device

    @classmethod
    def open(cls, run: Path, checkpoint: str, device: torch.device) -> TrainedRun:
        """Load a run's networks.

        Args:
            run: run directory.
            checkpoint: latest, or a number of images seen.
            device: where to draw.

        Raises:
            RunError: no run, no such checkpoint, damaged weights.
        """
        config = open_run(run)
        chosen = choose_checkpoint(run, checkpoint)
        held_out = Split.open(config.data, config.data.test_split)
        system = build_system(config.system, held_out.vocabulary.size)
        if not isinstance(system, Painter):
            raise RunError(f"{run} is a run of {config.system.name}, which draws no pictures")
        load_weights(chosen, system.modules)
        system.modules.to(device)
        return cls(run, config, chosen, system, held_out, device)

    @staticmethod
    def checkpoints(run: Path) -> list[int]:
        """Return the numbers of images of the run's checkpoints, ascending."""
        return list_checkpoints(run)

    @property
    def images_seen(self) -> int:
        """Images the checkpoint was trained on."""
        return self.checkpoint.progress.images_seen

    @property
    def checkpoint_sha256(self) -> str:
        """Identity of the weights."""
        return self.checkpoint.sha256

    @property
    def resolution(self) -> int:
        """Side of the pictures in pixels."""
        return self.system.resolution

    def draw(self, numbers: range, seed: int, split: str) -> Tensor:
        """Draw images number `numbers` of an evaluation: uint8 (B, 3, R, R) on the CPU.

        Noise and caption of image i are functions of (seed, i) alone.
        """
        captions = [self._split(split).caption(number, seed)[1] for number in numbers]
        latent = noise(seed, "evaluation noise", numbers, self.system.noise_width)
        return to_uint8(self.pictures(captions, latent, seed).images[-1])

    def pictures(self, captions: Sequence[str], latent: Tensor, seed: int) -> Pictures:
        """Draw one picture for each caption and row of noise (B, noise_width)."""
        tokens, lengths = encode_captions(
            captions, self.held_out.vocabulary, self.config.data.words, seed
        )
        return self.system.draw(
            tokens.to(self.device), lengths.to(self.device), latent.to(self.device)
        )

    @cached_property
    def _opened(self) -> dict[str, Split]:
        return {self.config.data.test_split: self.held_out}

    def _split(self, name: str) -> Split:
        if name not in self._opened:
            self._opened[name] = Split.open(self.config.data, name)
        return self._opened[name]


def to_uint8(images: Tensor) -> Tensor:
    """Turn [-1, 1] into 0..255, clamped and rounded to the nearest; on the CPU."""
    return (images.float() * 127.5 + 127.5).round().clamp(0, 255).to(torch.uint8).cpu()
