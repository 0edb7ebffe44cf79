"""Checkpoints: everything comes back, and one is chosen by its number of images."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from t2i_hpc.common.errors import RunError
from t2i_hpc.runs.checkpoint import (
    TrainingProgress,
    choose_checkpoint,
    load_weights,
    open_checkpoint,
    read_tensors,
)
from t2i_hpc.runs.layout import list_checkpoints
from t2i_hpc.systems.one_stage_gan import OneStageGAN
from t2i_hpc.training.ddp import DDPStrategy
from t2i_hpc.training.step import train_step
from tests.support.checkpoints import NOISE, save_checkpoint, stepped
from tests.support.training import tiny_batch


def save(run: Path, images: int, system: OneStageGAN, strategy: DDPStrategy) -> None:
    progress = TrainingProgress(images, images // 4, 1.5)
    save_checkpoint(run, system.modules, strategy.read_moments(), progress)


def test_a_step_after_loading_equals_the_step_without(tmp_path: Path) -> None:
    system, strategy = stepped(2)
    save(tmp_path, 8, system, strategy)
    train_step(strategy, tiny_batch(), NOISE)
    other, other_strategy = stepped(0)
    checkpoint = open_checkpoint(tmp_path, 8)
    assert checkpoint.progress == TrainingProgress(8, 2, 1.5)
    load_weights(checkpoint.files, other.modules)
    other_strategy.write_moments(read_tensors(checkpoint.moments))
    train_step(other_strategy, tiny_batch(), NOISE)
    for name, value in system.modules.state_dict().items():
        assert torch.equal(value, other.modules.state_dict()[name]), name


def test_without_the_moments_the_step_would_differ(tmp_path: Path) -> None:
    system, strategy = stepped(2)
    save(tmp_path, 8, system, strategy)
    train_step(strategy, tiny_batch(), NOISE)
    other, other_strategy = stepped(0)
    load_weights(open_checkpoint(tmp_path, 8).files, other.modules)
    train_step(other_strategy, tiny_batch(), NOISE)
    weights = other.modules.state_dict()
    assert any(not torch.equal(v, weights[n]) for n, v in system.modules.state_dict().items())


def test_a_half_written_checkpoint_is_not_seen(tmp_path: Path) -> None:
    system, strategy = stepped()
    save(tmp_path, 4, system, strategy)
    whole = tmp_path / "checkpoints" / "0000000004"
    shutil.copytree(whole, whole.with_name(".0000000008.tmp"))
    assert list_checkpoints(tmp_path) == [4]


def test_choosing(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no checkpoint yet"):
        choose_checkpoint(tmp_path, "latest")
    system, strategy = stepped()
    save(tmp_path, 4, system, strategy)
    save(tmp_path, 8, system, strategy)
    assert choose_checkpoint(tmp_path, "latest").progress.images_seen == 8
    assert choose_checkpoint(tmp_path, "4").progress.images_seen == 4
    with pytest.raises(RunError, match="it has: 4, 8"):
        choose_checkpoint(tmp_path, "5")


def test_another_systems_weights_are_refused(tmp_path: Path) -> None:
    system, strategy = stepped(0)
    save(tmp_path, 4, system, strategy)
    with pytest.raises(RunError, match="does not fit this system"):
        load_weights(open_checkpoint(tmp_path, 4).files, system.generator)
