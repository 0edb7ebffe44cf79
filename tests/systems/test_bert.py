"""BERT through the doors: new and pretrained, in every mode of fine-tuning."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from t2i_hpc.common.errors import ConfigurationError
from t2i_hpc.config.system import BERTConfig
from t2i_hpc.systems.bert import build_bert
from tests.support.bert import minilm_folder
from tests.support.data import make_shards
from tests.support.training import TINY, losses_of, only_run, run_door, train_tiny

NEW = (
    "system.text_encoder.name=bert",
    "system.text_encoder.bert.layers=1",
    "system.text_encoder.bert.heads=4",
    "system.text_encoder.bert.feed_forward=32",
)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_shards(tmp_path_factory.mktemp("data"), count=24, size=80)


def weights(run: Path, images: int) -> dict[str, Tensor]:
    return load_file(run / f"checkpoints/{images:010d}/weights.safetensors")


def test_a_new_one_is_trained_jointly_and_resumes_to_the_bit(shards: Path, tmp_path: Path) -> None:
    words = (
        *NEW,
        "system.text_encoder.training=joint",
        "system.image_encoder.name=efficientnet_lite0",
    )
    train_tiny(shards, tmp_path / "one", *words, "engine.images=8")
    train_tiny(shards, tmp_path / "two", *words, "engine.images=4")
    train_tiny(shards, tmp_path / "two", *words, "engine.images=8")
    runs = [only_run(tmp_path / name) for name in ("one", "two")]
    straight, resumed = (weights(run, 8) for run in runs)
    assert straight.keys() == resumed.keys()
    for name, value in straight.items():
        assert torch.equal(value, resumed[name]), name
    trained = "text_encoder.bert.embeddings.LayerNorm.weight"
    assert not torch.equal(weights(runs[1], 4)[trained], straight[trained])


def test_a_pretrained_one_steers_a_training_and_its_pictures(tmp_path: Path) -> None:
    minilm_folder()
    tiny = [word for word in TINY if "text_encoder" not in word]
    words = ("experiment=demo_bert", *tiny, "engine.images=4", f"runs={tmp_path}")
    done = run_door("train", *words)
    assert done.returncode == 0, done.stdout + done.stderr
    run = only_run(tmp_path)
    assert len(losses_of(run)) == 1
    asked = ('captions=["a zorblax bird"]', "columns=1", "device=cpu")
    drawn = run_door("generate", f"run={run}", *asked)
    assert drawn.returncode == 0, drawn.stdout + drawn.stderr
    assert list((run / "generated").rglob("*.png"))


def test_another_vocabulary_is_refused_before_anything_is_trained(
    shards: Path, tmp_path: Path
) -> None:
    words = ("experiment=demo_bert", f"data.path={shards}", "data.tokeniser=", f"runs={tmp_path}")
    minilm_folder()
    done = run_door("train", *words)
    assert done.returncode == 2
    assert "knows 30,522 word pieces, the data has" in done.stderr
    assert "data.tokeniser=" in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (BERTConfig(heads=5), r"width=16 cannot be divided by .*heads=5"),
        (BERTConfig(pretrained="bert.bin"), "must be the file model.safetensors"),
        (BERTConfig(pretrained="/nowhere/model.safetensors"), "cannot be loaded"),
    ],
)
def test_what_does_not_fit_is_told(config: BERTConfig, said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        build_bert(config, 16, 20)
