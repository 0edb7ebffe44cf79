"""Networks that nothing trains: once on the disk, whole in every checkpoint, mended where they can
be.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from t2i_hpc import train
from t2i_hpc.common.errors import USER_ERROR
from t2i_hpc.config.engine import CheckpointConfig
from t2i_hpc.runs.checkpoint import (
    DamagedFrozenError,
    load_weights,
    open_checkpoint,
    verify,
)
from t2i_hpc.runs.layout import folder_of, list_checkpoints
from t2i_hpc.systems.base import System
from t2i_hpc.systems.one_stage_gan import OneStageGAN
from t2i_hpc.training.checkpoints.recovery import recover
from t2i_hpc.training.checkpoints.saving import prune_checkpoints
from t2i_hpc.training.checkpoints.writing import split_frozen
from tests.support.checkpoints import (
    make_checkpoints,
    progress_of,
    rewrite_state,
    saver_of,
    stepped,
)
from tests.support.training import TINY, only_run, tiny_system
from tests.systems.tiny import built_encoders

FROZEN = "frozen.safetensors"


@pytest.fixture
def saved(tmp_path: Path) -> tuple[Path, OneStageGAN]:
    """A run that keeps its checkpoints of 4 and 8 images, and the system that they are of."""
    system, strategy = stepped(0)
    saver = saver_of(tmp_path, strategy)
    for images in (0, 4, 8):
        with torch.no_grad():
            system.generator.to_rgb.weight.add_(1)
        saver.save(progress_of(images))
    saver.finish()
    return tmp_path, system


def files(run: Path) -> list[Path]:
    return [folder_of(run, images) / FROZEN for images in list_checkpoints(run)]


def damage(path: Path) -> None:
    """Change one byte in place, under every name that the file has."""
    with path.open("r+b") as stream:
        stream.seek(-1, os.SEEK_END)
        stream.write(b"x")


def test_they_are_on_the_disk_once_and_in_every_checkpoint(saved: tuple[Path, OneStageGAN]) -> None:
    run, system = saved
    assert len({path.stat().st_ino for path in files(run)}) == 1
    names = load_file(folder_of(run, 8) / "weights.safetensors")
    assert not [name for name in names if name.startswith("text_encoder.")]
    other = tiny_system()
    for parameter in other.modules.parameters():
        torch.nn.init.zeros_(parameter)
    load_weights(open_checkpoint(run, 8).files, other.modules)
    for name, value in system.modules.state_dict().items():
        assert torch.equal(other.modules.state_dict()[name], value), name


def test_deleting_checkpoints_leaves_what_others_need(saved: tuple[Path, OneStageGAN]) -> None:
    run, _ = saved
    prune_checkpoints(run, CheckpointConfig(keep=1, keep_best=0))
    (path,) = files(run)
    assert path.stat().st_nlink == 1
    verify(open_checkpoint(run, 8))


def test_a_file_system_without_hard_links_has_copies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(os, "link", refuse)
    saver = saver_of(tmp_path, stepped(0)[1])
    for images in (0, 4):
        saver.save(progress_of(images))
    saver.finish()
    assert len({path.stat().st_ino for path in files(tmp_path)}) == 2
    open_checkpoint(tmp_path, 4)


def test_networks_that_move_after_all_have_files_of_their_own(
    saved: tuple[Path, OneStageGAN],
) -> None:
    run, system = saved
    with torch.no_grad():
        next(system.text_encoder.parameters()).add_(1)
    saver = saver_of(run, stepped(0)[1])
    saver._system = system
    saver.save(progress_of(12))
    saver.finish()
    assert len({path.stat().st_ino for path in files(run)}) == 2
    assert [open_checkpoint(run, images) for images in (8, 12)]


def test_a_missing_file_is_taken_from_another_checkpoint(saved: tuple[Path, OneStageGAN]) -> None:
    run, _ = saved
    files(run)[-1].unlink()
    found = recover(run)
    assert found is not None
    assert found.progress.images_seen == 8
    assert len({path.stat().st_ino for path in files(run)}) == 1


def test_what_damages_all_is_restored_from_the_initial_weights(
    saved: tuple[Path, OneStageGAN], caplog: pytest.LogCaptureFixture
) -> None:
    run, _ = saved
    damage(files(run)[0])
    found = recover(run, tiny_system)
    assert found is not None
    assert found.progress.images_seen == 8
    assert "is restored" in caplog.text
    assert [open_checkpoint(run, images) for images in (4, 8)]


@pytest.mark.parametrize("other", [None, lambda: tiny_system("frozen", 0.1)])
def test_what_cannot_be_restored_sets_no_checkpoint_aside(
    saved: tuple[Path, OneStageGAN], other: Any
) -> None:
    run, _ = saved
    damage(files(run)[0])
    said = r"0000000008 is damaged: frozen\.safetensors does not match .* initial weights"
    with pytest.raises(DamagedFrozenError, match=said):
        recover(run, other)
    assert list_checkpoints(run) == [4, 8]


def test_the_next_save_shares_no_damage(saved: tuple[Path, OneStageGAN]) -> None:
    run, _ = saved
    damage(files(run)[0])
    saver = saver_of(run, stepped(0)[1])
    saver.save(progress_of(12))
    saver.finish()
    open_checkpoint(run, 12)
    found = recover(run)
    assert found is not None
    assert found.progress.images_seen == 12


def test_checkpoints_of_the_format_before_are_read(tmp_path: Path) -> None:
    (folder,) = make_checkpoints(tmp_path, 8)
    rewrite_state(folder, {"format": 2})
    load_weights(open_checkpoint(tmp_path, 8).files, tiny_system().modules)


def test_the_trunk_under_trained_heads_is_apart() -> None:
    system: System = built_encoders()
    rest, frozen = split_frozen(system, system.modules.state_dict())
    assert {name.split(".")[1] for name in frozen} == {"trunk"}
    assert {".".join(name.split(".")[:2]) for name in rest if name.startswith("image")} == {
        "image_encoder.heads"
    }


def test_training_restores_them_or_says_what_to_do(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [*TINY, f"data.path={shards}", f"runs={tmp_path}"]
    assert train.COMMAND.main([*arguments, "engine.images=4"]) == 0
    run = only_run(tmp_path)
    damage(files(run)[0])
    assert train.COMMAND.main([*arguments, "engine.images=8"]) == 0
    damage(files(run)[0])
    torch_seed = torch.manual_seed

    def another(_: int) -> torch.Generator:
        return torch_seed(99)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "manual_seed", another)  # as if its file held another encoder now
        assert train.COMMAND.main([*arguments, "engine.images=12"]) == USER_ERROR
    assert f"{FROZEN} does not match" in capsys.readouterr().err
    assert list_checkpoints(run) == [4, 8]
