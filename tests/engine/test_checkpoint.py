"""Checkpoints: everything comes back, damage is seen, the newest valid one is taken."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from t2i_hpc.common.errors import RunError
from t2i_hpc.engine.checkpoint import (
    Progress,
    choose_checkpoint,
    list_checkpoints,
    load_optimisers,
    load_weights,
    newest_checkpoint,
    open_checkpoint,
    prune_checkpoints,
    save_checkpoint,
)
from t2i_hpc.engine.ddp import DDPEngine
from t2i_hpc.engine.world import World
from t2i_hpc.systems.ssa_gan import SSAGAN
from tests.support.training import tiny_batch, tiny_system

CPU = World(0, 1, 0, 1, torch.device("cpu"))
NOISE = torch.randn(4, 100, generator=torch.Generator().manual_seed(0))


def stepped(steps: int = 1) -> tuple[SSAGAN, DDPEngine]:
    system = tiny_system()
    engine = DDPEngine(system, CPU, "fp32")
    for _ in range(steps):
        engine.step(tiny_batch(), NOISE)
    return system, engine


def save(run: Path, images: int, system: SSAGAN, engine: DDPEngine) -> None:
    progress = Progress(images, images // 4, 1.5)
    save_checkpoint(run, system.modules, system.parts, engine.optimisers, progress)


def test_a_step_after_loading_equals_the_step_without(tmp_path: Path) -> None:
    system, engine = stepped(2)
    save(tmp_path, 8, system, engine)
    engine.step(tiny_batch(), NOISE)
    other, other_engine = stepped(0)
    checkpoint = open_checkpoint(tmp_path, 8)
    assert checkpoint.progress == Progress(8, 2, 1.5)
    load_weights(checkpoint, other.modules)
    load_optimisers(checkpoint, other.parts, other_engine.optimisers)
    other_engine.step(tiny_batch(), NOISE)
    for name, value in system.modules.state_dict().items():
        assert torch.equal(value, other.modules.state_dict()[name]), name


def test_without_the_moments_the_step_would_differ(tmp_path: Path) -> None:
    system, engine = stepped(2)
    save(tmp_path, 8, system, engine)
    engine.step(tiny_batch(), NOISE)
    other, other_engine = stepped(0)
    load_weights(open_checkpoint(tmp_path, 8), other.modules)
    other_engine.step(tiny_batch(), NOISE)
    weights = other.modules.state_dict()
    assert any(not torch.equal(v, weights[n]) for n, v in system.modules.state_dict().items())


@pytest.mark.parametrize("name", ["weights.safetensors", "optimisers.safetensors", "state.json"])
@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_taken(
    tmp_path: Path, name: str, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    system, engine = stepped()
    save(tmp_path, 4, system, engine)
    save(tmp_path, 8, system, engine)
    path = tmp_path / "checkpoints" / "0000000008" / name
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    if damage == "flip":
        content[middle] ^= 0xFF
    path.write_bytes(bytes(content[:middle] if damage == "cut" else content))
    if damage == "remove":
        path.unlink()
    newest = newest_checkpoint(tmp_path)
    assert newest is not None
    assert newest.progress.images_seen == 4
    assert "0000000008" in caplog.text
    with pytest.raises(RunError, match="0000000008"):
        open_checkpoint(tmp_path, 8)


def test_a_half_written_checkpoint_is_not_seen(tmp_path: Path) -> None:
    system, engine = stepped()
    save(tmp_path, 4, system, engine)
    whole = tmp_path / "checkpoints" / "0000000004"
    shutil.copytree(whole, whole.with_name(".0000000008.tmp"))
    assert list_checkpoints(tmp_path) == [4]


def test_choosing(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no checkpoint yet"):
        choose_checkpoint(tmp_path, "latest")
    system, engine = stepped()
    save(tmp_path, 4, system, engine)
    save(tmp_path, 8, system, engine)
    assert choose_checkpoint(tmp_path, "latest").progress.images_seen == 8
    assert choose_checkpoint(tmp_path, "4").progress.images_seen == 4
    with pytest.raises(RunError, match="it has: 4, 8"):
        choose_checkpoint(tmp_path, "5")


def test_pruning_keeps_the_newest_and_the_milestones(tmp_path: Path) -> None:
    system, engine = stepped(0)
    for images in (0, 4, 8, 12, 16, 20):
        save(tmp_path, images, system, engine)
    prune_checkpoints(tmp_path, keep=2, milestones=10)
    assert list_checkpoints(tmp_path) == [0, 12, 16, 20]
    prune_checkpoints(tmp_path, keep=1, milestones=0)
    assert list_checkpoints(tmp_path) == [20]


def test_another_systems_weights_are_refused(tmp_path: Path) -> None:
    system, engine = stepped(0)
    save(tmp_path, 4, system, engine)
    with pytest.raises(RunError, match="does not fit this system"):
        load_weights(open_checkpoint(tmp_path, 4), system.generator)
