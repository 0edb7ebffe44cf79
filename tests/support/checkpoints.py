"""Runs with checkpoints of the tiny system, written as training writes them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from t2i_hpc.common.files import sha256_of_file, sha256_of_json, write_json
from t2i_hpc.runs.checkpoint import Checkpoint, TrainingProgress
from t2i_hpc.runs.layout import folder_of
from t2i_hpc.systems.one_stage_gan import OneStageGAN
from t2i_hpc.training.checkpoints.saving import Saver
from t2i_hpc.training.checkpoints.writing import Snapshot, take_snapshot, write_checkpoint
from t2i_hpc.training.ddp import DDPStrategy
from t2i_hpc.training.progress import RunOutput, Silence
from t2i_hpc.training.step import train_step
from t2i_hpc.training.world import World
from tests.support.training import tiny_batch, tiny_system

CPU = World(0, 1, 0, 1, torch.device("cpu"))
NOISE = torch.randn(4, 100, generator=torch.Generator().manual_seed(0))


def stepped(steps: int = 1) -> tuple[OneStageGAN, DDPStrategy]:
    """Return the tiny system and its strategy after some steps."""
    system = tiny_system()
    strategy = DDPStrategy(system, CPU)
    for _ in range(steps):
        train_step(strategy, tiny_batch(), NOISE)
    return system, strategy


def saver_of(run: Path, strategy: DDPStrategy) -> Saver:
    """Return what loads and writes a run's checkpoints."""
    return Saver(RunOutput(run, Silence()), strategy)


def progress_of(images: int) -> TrainingProgress:
    """Return the progress after so many images in batches of four."""
    return TrainingProgress(images, images // 4, 1.5)


def save_checkpoint(
    run: Path, modules: nn.Module, moments: Mapping[str, Tensor], progress: TrainingProgress
) -> Checkpoint:
    """Write a checkpoint of networks and moments as they are now, and wait for it."""
    weights = take_snapshot(modules.state_dict())
    return write_checkpoint(run, Snapshot(weights, take_snapshot(moments), progress, {}))


@lru_cache
def _stepped_once() -> tuple[dict[str, Tensor], OneStageGAN]:
    system, strategy = stepped()
    return strategy.read_moments(), system


def make_checkpoints(run: Path, *numbers: int) -> list[Path]:
    """Write checkpoints of one and the same training step; return their folders."""
    moments, system = _stepped_once()
    for images in numbers:
        save_checkpoint(run, system.modules, moments, progress_of(images))
    return [folder_of(run, images) for images in numbers]


def rewrite_state(folder: Path, changes: dict[str, Any], *, honest: bool = True) -> None:
    """Change values of state.json; `honest` makes hashes and checksum fit again."""
    state = json.loads((folder / "state.json").read_text()) | changes
    if honest:
        for name in state["files"]:
            path = folder / name
            state["files"][name] = {"sha256": sha256_of_file(path), "bytes": path.stat().st_size}
        del state["checksum"]
        state["checksum"] = sha256_of_json(state)
    write_json(folder / "state.json", state)
