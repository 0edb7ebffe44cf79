"""BERT through the commands: new and pretrained, in every mode of fine-tuning."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from t2i_hpc.common.errors import ConfigurationError
from t2i_hpc.config.encoder_settings import BERTConfig
from t2i_hpc.config.engine import EngineConfig
from t2i_hpc.models.text_encoder import new_bert
from t2i_hpc.systems.encoders import build_bert
from t2i_hpc.training.step import build_strategy, train_step
from t2i_hpc.training.world import World
from tests.support.bert import minilm_folder
from tests.support.data import make_shards
from tests.support.training import TINY, losses_of, only_run, run_task, tiny_batch
from tests.systems.tiny import built

ALONE = World(0, 1, 0, 1, torch.device("cpu"))


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_shards(tmp_path_factory.mktemp("data"), count=24, size=80)


def test_a_new_one_is_trained_along() -> None:
    system = built("bert")
    before = {name: value.clone() for name, value in system.text_encoder.state_dict().items()}
    strategy = build_strategy(system, ALONE, EngineConfig(batch_size=4))
    train_step(strategy, tiny_batch(), torch.randn(4, system.noise_width), 0)
    name = "bert.embeddings.LayerNorm.weight"
    assert not torch.equal(system.text_encoder.state_dict()[name], before[name])


def test_a_pretrained_one_trains_and_generates(tmp_path: Path) -> None:
    minilm_folder()
    tiny = [override for override in TINY if "text_encoder" not in override]
    overrides = ("experiment=demo_bert", *tiny, "engine.images=4", f"runs={tmp_path}")
    done = run_task("train", *overrides)
    assert done.returncode == 0, done.stdout + done.stderr
    run = only_run(tmp_path)
    assert len(losses_of(run)) == 1
    asked = ('captions=["a zorblax bird"]', "columns=1", "device=cpu")
    generated = run_task("generate", f"run={run}", *asked)
    assert generated.returncode == 0, generated.stdout + generated.stderr
    assert list((run / "generated").rglob("*.png"))


def test_another_vocabulary_is_refused_before_anything_is_trained(
    shards: Path, tmp_path: Path
) -> None:
    overrides = (
        "experiment=demo_bert",
        f"data.path={shards}",
        "data.tokenizer=",
        f"runs={tmp_path}",
    )
    minilm_folder()
    done = run_task("train", *overrides)
    assert done.returncode == 2
    assert "knows 30,522 word pieces, the data has" in done.stderr
    assert "data.tokenizer=" in done.stderr
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


def saved(folder: Path, layers: int = 2, dtype: torch.dtype = torch.float32) -> Path:
    """Save a small BERT as transformers does; return its weights."""
    bert, _, _ = new_bert(18, 16, layers=layers, heads=4, feed_forward=32, dropout=0.0)
    torch.nn.Module.to(bert, dtype=dtype)
    bert.save_pretrained(folder)
    return folder / "model.safetensors"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_becomes_float32(tmp_path: Path, dtype: torch.dtype) -> None:
    path = saved(tmp_path, dtype=dtype)
    encoder = build_bert(BERTConfig(pretrained=str(path), first_token=1, last_token=2), 16, 20)
    assert {parameter.dtype for parameter in encoder.parameters()} == {torch.float32}
    features = encoder(torch.tensor([[3, 4]]), torch.tensor([2]))
    assert features.sentence.dtype == torch.float32


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model_type": "distilbert"}, "of the kind 'distilbert', not bert"),
        ({"num_hidden_layers": 3}, r"it lacks encoder\.layer\.2\..*copy both files again"),
        ({"num_hidden_layers": 1}, r"it holds encoder\.layer\.1\..*copy both files again"),
    ],
)
def test_a_folder_of_another_network_is_refused(
    tmp_path: Path, changes: dict[str, object], said: str
) -> None:
    path = saved(tmp_path)
    config = tmp_path / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | changes))
    with pytest.raises(ConfigurationError, match=rf"bert\.pretrained=.*{said}"):
        build_bert(BERTConfig(pretrained=str(path)), 16, 20)


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    """A DistilBERT's names under a BERT's config.json: every number would be random."""
    path = saved(tmp_path)
    tensors = {f"distilbert.{name}": value for name, value in load_file(path).items()}
    save_file(tensors, path, {"format": "pt"})
    with pytest.raises(ConfigurationError, match="does not hold the network"):
        build_bert(BERTConfig(pretrained=str(path)), 16, 20)
