"""GALIP's published files and a folder of its CLIP become a run, which outlives that folder."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from t2i_hpc import load_run
from t2i_hpc.convert import export_reference
from t2i_hpc.convert.__main__ import COMMAND
from tests.golden import fill
from tests.support.clip import write_clip
from tests.systems.tiny import COMMON, SYSTEMS, built

NARROW = ("system.generator_width=2", "system.discriminator_width=2", "system.noise_width=8")


def filled(network: str, module: nn.Module) -> dict[str, Tensor]:
    """Return what a released file holds of a network as narrow as ours."""
    shapes = export_reference("clip_gan", network, module)
    state = fill.state_dict({k: tuple(v.shape) for k, v in shapes.items()}, 3, 0.5)
    if network == "generator":  # the frozen CLIP is in the file, and is not read from there
        state["mapping.CLIP_ViT.conv1.weight"] = torch.zeros(5)
    return {f"module.{name}": value for name, value in state.items()}


def test_published_files_become_a_run(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    clip, tiny = write_clip(tmp_path / "clip"), built("clip_gan")
    judge = tiny.discriminator
    networks = {"netG": ("generator", tiny.generator), "netD": ("discriminator", judge.trunk)}
    networks["netC"] = ("head", judge.head)
    file, run = tmp_path / "pre_coco.pth", tmp_path / "run"
    model = {name: filled(*network) for name, network in networks.items()}
    torch.save({"model": model, "epoch": 2}, file)
    own = (w for w in SYSTEMS["clip_gan"] if not w.startswith(("system=", "system.clip=", "data.")))
    folder = (f"system.clip={clip}/model.safetensors", f"data.tokenizer={clip}/tokenizer.json")
    given = ["experiment=coco_galip", *COMMON, *own, *NARROW, f"generator={file}"]
    assert COMMAND.main([*given, *folder[:1], f"output={run}"]) == 2
    assert "data.tokenizer= is empty" in capfd.readouterr().err
    assert COMMAND.main([*given, *folder, f"output={run}"]) == 0, capfd.readouterr().err
    said = capfd.readouterr().out
    for word in ("CLIPGenerator", "CLIPTrunk", "CLIPHead", "CLIPTextEncoder", "CLIPVision"):
        assert word in said
    shutil.rmtree(clip)

    loaded: Any = load_run(run, device="cpu").system
    expected = {"blocks.0.conv1.weight": model["netG"]["module.GBlocks.0.c1.weight"]}
    for name, value in expected.items():
        assert torch.equal(loaded.generator.state_dict()[name], value)
    assert torch.equal(loaded.vision.positions, tiny.vision.positions)
    images = loaded.generate(torch.tensor([[2, 10, 15]]), torch.tensor([3]), torch.randn(1, 8))
    assert images.images[-1].shape == (1, 3, 64, 64)
    assert images.images[-1].abs().max() <= 1
