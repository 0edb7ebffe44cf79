"""A whole run on a GPU: it trains, saves, and resumes to what an uninterrupted run ends with."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from t2i_hpc import train
from t2i_hpc.config.engine import EngineConfig
from tests.support.training import TINY, losses_of, only_run

IMAGES = 16
DETERMINISTIC = any(item.name == "deterministic" for item in fields(EngineConfig))


def session(runs: Path, shards: Path, device: torch.device, images: int) -> Path:
    """Train up to so many images; return the run directory."""
    overrides = [*TINY, f"data.path={shards}", f"runs={runs}", f"engine.device={device.type}"]
    overrides += ["engine.checkpoint.every_images=8", f"engine.images={images}"]
    overrides += ["engine.deterministic=true"] if DETERMINISTIC else []
    assert train.COMMAND.main(overrides) == 0
    return only_run(runs)


@pytest.mark.timeout(300)
def test_a_run_resumes_to_what_an_uninterrupted_one_ends_with(
    device: torch.device, shards: Path, tmp_path: Path
) -> None:
    session(tmp_path / "cut", shards, device, IMAGES // 2)
    cut = session(tmp_path / "cut", shards, device, IMAGES)
    whole = session(tmp_path / "whole", shards, device, IMAGES)
    assert (cut / "samples" / f"{IMAGES:010d}.png").is_file()
    for file in ("weights", "optimizers"):
        place = f"checkpoints/{IMAGES:010d}/{file}.safetensors"
        ours, theirs = load_file(cut / place), load_file(whole / place)
        assert ours.keys() == theirs.keys()
        for key, value in ours.items():
            if DETERMINISTIC:
                assert torch.equal(value, theirs[key]), key
            else:
                torch.testing.assert_close(value, theirs[key], rtol=1e-2, atol=1e-3, msg=key)
    if DETERMINISTIC:
        assert losses_of(cut) == losses_of(whole)
