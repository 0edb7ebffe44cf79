"""What ranks agree on around a checkpoint (real processes over gloo)."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from t2i_hpc.common.errors import RunError
from t2i_hpc.common.files import sha256_of_file
from t2i_hpc.runs.layout import folder_of, list_checkpoints
from t2i_hpc.training.checkpoints.recovery import recover_together
from t2i_hpc.training.ddp import DDPStrategy
from t2i_hpc.training.world import World, raise_together, share_text
from tests.support.checkpoints import make_checkpoints, progress_of, rewrite_state, saver_of
from tests.support.ranks import run_ranks
from tests.support.training import tiny_system


def said(work: Any, *arguments: Any) -> str:
    """Return what a call raises, "" if it does not."""
    try:
        work(*arguments)
    except RunError as error:
        return str(error)
    return ""


def flip_one_bit(system: Any) -> None:
    weight = next(v for n, v in system.modules.state_dict().items() if n.endswith("conv2.weight"))
    weight.view(torch.int32).flatten()[5] ^= 1


def on_one_rank(world: World, run: Path) -> dict[str, Any]:
    """Run all cases in one start of the ranks; return what this rank saw."""
    seen: dict[str, Any] = {}
    seen["text"] = share_text(world, f"größer {world.rank}", 1)
    seen["empty"] = share_text(world, "", 0)
    error = RunError(f"rank {world.rank} is out of paper") if world.rank == 1 else None
    seen["error"] = said(raise_together, world, error)
    seen["no error"] = said(raise_together, world, None)

    found = recover_together(run / "whole", world)
    seen["images"] = found and found.progress.images_seen
    seen["new"] = recover_together(run / "new", world)
    seen["damaged"] = said(recover_together, run / "damaged", world)
    mine = run / "whole" if world.is_main else run / "new"
    seen["unseen"] = said(recover_together, mine, world, 0.3)
    mine = run / "whole" if world.is_main else run / "stale"
    seen["stale"] = said(recover_together, mine, world, 0.3)

    hashed: list[Path] = []

    def hashing(path: Path) -> str:
        hashed.append(path)
        return sha256_of_file(path)

    with mock.patch("t2i_hpc.runs.checkpoint.sha256_of_file", hashing):
        recover_together(run / "whole", world)
    seen["hashed"] = len(hashed)
    mine = run / "whole" if world.is_main else run / "cut"
    seen["cut"] = said(recover_together, mine, world, 0.3)

    system = tiny_system()
    saver = saver_of(run / "saved", DDPStrategy(system, world))
    saver.save(progress_of(4))
    saver.finish()
    if world.rank == 1:
        flip_one_bit(system)
    seen["parted"] = said(saver.save, progress_of(8))
    if world.rank == 1:
        flip_one_bit(system)
    saver.save(progress_of(12))
    saver.finish()

    with mock.patch("t2i_hpc.training.checkpoints.writing.save_file", full):
        saver.save(progress_of(48))
        while world.is_main and not saver.due(progress_of(48)):
            time.sleep(0.01)
    (seen["due"],) = world.agree(saver.due(progress_of(48)))
    seen["full"] = said(saver.save, progress_of(48))
    return seen


def full(tensors: Any, path: Path) -> None:
    raise OSError(28, "No space left on device", str(path))


def test_all_ranks_take_one_checkpoint_and_hear_of_one_another(tmp_path: Path) -> None:
    make_checkpoints(tmp_path / "whole", 4, 8)
    (stale,) = make_checkpoints(tmp_path / "stale", 8)
    rewrite_state(stale, {"origin": {"time": "yesterday"}})
    (folder,) = make_checkpoints(tmp_path / "damaged", 8)
    (folder / "state.json").unlink()
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    os.truncate(folder_of(tmp_path / "cut", 8) / "weights.safetensors", 1000)
    for name in ("new", "saved", "ranks"):
        (tmp_path / name).mkdir()
    run_ranks(on_one_rank, 2, tmp_path / "ranks", tmp_path)
    main, other = (
        torch.load(tmp_path / "ranks" / f"{rank}.pt", weights_only=False) for rank in range(2)
    )
    assert (main.pop("hashed"), other.pop("hashed")) == (2, 0)  # one rank reads every byte
    assert main == other
    assert "weights.safetensors does not match its size" in main["cut"]
    assert (main["text"], main["empty"]) == ("größer 1", "")
    assert (main["error"], main["no error"]) == ("rank 1 is out of paper", "")
    assert (main["images"], main["new"]) == (8, None)
    assert "damaged checkpoints alone" in main["damaged"]
    assert "another rank does not see" in main["unseen"]
    assert "no state.json" in main["unseen"]
    assert "another one is there" in main["stale"]
    assert "the replicas have parted" in main["parted"]
    assert "conv2.weight of rank 1 is not that of rank 0" in main["parted"]
    assert main["due"] is True
    assert "No space left on device" in main["full"]
    assert list_checkpoints(tmp_path / "saved") == [4, 12]
