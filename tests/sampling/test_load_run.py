"""``load_run``: images of captions from Python."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from t2i_hpc import load_run
from t2i_hpc.common.errors import ConfigurationError, RunError
from t2i_hpc.generate import COMMAND
from t2i_hpc.sampling.trained_run import TrainedRun
from tests.commands.trained import make_run
from tests.sampling.staged import staged_run

CAPTIONS = ["a red circle", "one square"]


@pytest.fixture(scope="module")
def folder(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "birds", shards)


@pytest.fixture(scope="module")
def run(folder: Path) -> TrainedRun:
    return load_run(folder, device="cpu")


def test_images_come_with_their_masks_and_words(run: TrainedRun) -> None:
    made = run.generate(CAPTIONS, seed=3, images_per_caption=2)
    assert (made.images.shape, made.images.dtype) == ((4, 3, 64, 64), torch.uint8)
    assert [mask.shape[-1] for mask in made.masks] == [4, 8, 16, 32, 64]
    assert all(0 <= float(mask.min()) <= float(mask.max()) <= 1 for mask in made.masks)
    assert made.attention == []
    assert made.captions == [CAPTIONS[0]] * 2 + [CAPTIONS[1]] * 2
    assert made.words[0] == ["a", "red", "circle"]
    picture = made.pictures()[3]
    assert (np.asarray(picture) == made.images[3].permute(1, 2, 0).numpy()).all()


def test_an_image_depends_on_seed_caption_and_number_alone(run: TrainedRun) -> None:
    made = run.generate(CAPTIONS, seed=3, images_per_caption=2)
    alone = run.generate(CAPTIONS[1], seed=3, images_per_caption=2)
    assert int((alone.images.int() - made.images[2:].int()).abs().max()) <= 1  # by the batch
    assert torch.equal(alone.noise, made.noise[:2])
    assert not torch.equal(alone.images[0], alone.images[1])
    assert not torch.equal(run.generate(CAPTIONS[1], seed=4).noise, alone.noise[:1])
    again = run.generate(CAPTIONS[1], noise=alone.noise[1:])
    assert int((again.images.int() - alone.images[1:].int()).abs().max()) <= 1


def test_the_command_shows_the_same_images(folder: Path, run: TrainedRun, tmp_path: Path) -> None:
    words = [f"run={folder}", f"captions=[{CAPTIONS[0]}]", "columns=2", "seed=3", "device=cpu"]
    assert COMMAND.main([*words, f"output={tmp_path}"]) == 0
    boxes = [
        each["box"] for each in json.loads((tmp_path / "pictures.json").read_text())["pictures"]
    ]
    made = run.generate(CAPTIONS[0], seed=3, images_per_caption=2).pictures()
    with Image.open(tmp_path / "pictures.png") as grid:
        for (left, top, width, height), picture in zip(boxes, made, strict=True):
            cell = grid.convert("RGB").crop((left, top, left + width, top + height))
            assert (np.asarray(cell) == np.asarray(picture)).all()


def test_attention_is_given_word_by_word() -> None:
    run = staged_run("attn_gan", CAPTIONS)
    made = run.generate(CAPTIONS, seed=1)
    assert [tuple(stage.shape[1:]) for stage in made.stages] == [(3, 16, 16), (3, 32, 32)]
    assert made.masks == []
    (attention,) = made.attention
    assert attention.shape == (2, run.config.data.max_tokens, 16, 16)
    torch.testing.assert_close(attention.sum(1), torch.ones(2, 16, 16))
    assert float(attention[1, len(made.words[1]) :].abs().max()) == 0


def test_a_lower_precision_changes_little_and_no_setting(folder: Path, run: TrainedRun) -> None:
    before = (torch.backends.cudnn.allow_tf32, torch.is_grad_enabled(), torch.is_autocast_enabled())
    exact = run.generate(CAPTIONS, seed=3)
    low = load_run(folder, device="cpu", precision="bfloat16").generate(CAPTIONS, seed=3)
    difference = (exact.images.int() - low.images.int()).abs().float()
    assert 0 < float(difference.mean()) < 5
    assert low.masks[-1].dtype == low.stages[-1].dtype == torch.float32
    assert torch.equal(run.generate(CAPTIONS, seed=3).images, exact.images)
    after = (torch.backends.cudnn.allow_tf32, torch.is_grad_enabled(), torch.is_autocast_enabled())
    assert after == before


def test_what_cannot_be_is_refused(folder: Path, run: TrainedRun, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="no word of the caption 'qwertz'"):
        run.generate(["a circle", "qwertz"])
    with pytest.raises(ConfigurationError, match="nothing to generate"):
        run.generate([])
    with pytest.raises(ConfigurationError, match=r"2 images need \(2, 8\)"):
        run.generate(CAPTIONS, noise=torch.zeros(1, 8))
    with pytest.raises(ConfigurationError, match="precision=int8 is not offered"):
        load_run(folder, precision="int8")
    with pytest.raises(ConfigurationError, match="device=gpux is no device"):
        load_run(folder, device="gpux")
    with pytest.raises(RunError, match="no such folder"):
        load_run(tmp_path / "nowhere")
    assert load_run(folder, 100, device="cpu").images_seen == 100
