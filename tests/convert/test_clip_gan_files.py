"""A run made of GALIP's files holds its CLIP and outlives the folder; tokens are needed."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from t2i_hpc import load_run
from t2i_hpc.convert.__main__ import COMMAND
from tests.golden.case import case
from tests.golden.clip_folder import write_golden_clip

NARROW = ("system.generator_width=4", "system.bridge_width=8", "system.text_encoder.width=32")


def test_the_run_outlives_clips_folder(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    clip, file, run = write_golden_clip(tmp_path / "clip"), tmp_path / "netG.pth", tmp_path / "run"
    torch.save(case("galip").weights("G"), file)
    own = ["experiment=coco_galip", *NARROW, "data.max_tokens=14", f"generator={file}"]
    own += [f"system.clip={clip}/model.safetensors", f"output={run}"]
    assert COMMAND.main(own) == 2
    assert "data.tokenizer= is empty" in capfd.readouterr().err
    assert COMMAND.main([*own, f"data.tokenizer={clip}/tokenizer.json"]) == 0
    said = capfd.readouterr().out
    for word in ("CLIPGenerator", "CLIPTextEncoder", "CLIPVision", "not given: discriminator"):
        assert word in said
    shutil.rmtree(clip)
    assert load_run(run, device="cpu").generate("a red circle").images.shape == (1, 3, 224, 224)
