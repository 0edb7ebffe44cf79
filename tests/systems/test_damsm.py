"""Pre-training as a system, and through its command."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from t2i_hpc.common.files import read_json_lines
from t2i_hpc.config.encoder_settings import PretrainedTrunkConfig
from t2i_hpc.config.systems import DAMSMPretrainingConfig
from t2i_hpc.data.captions import Vocabulary
from t2i_hpc.runs.checkpoint import read_state, read_tensors
from t2i_hpc.systems import build_system
from t2i_hpc.systems.base import RetrievalSystem, TextToImageSystem, total
from t2i_hpc.systems.damsm_pretraining import DAMSMPretraining
from t2i_hpc.systems.encoders import vocabulary_of
from t2i_hpc.training.ddp import DDPStrategy
from t2i_hpc.training.step import train_step
from t2i_hpc.training.world import World
from tests.support.training import (
    losses_of,
    only_run,
    run_task,
    tiny_batch,
    tiny_system,
    train_tiny,
)

ENCODERS = (
    "system=damsm",
    "system.resolution=64",
    "system.image_encoder.name=efficientnet_lite0",
    "system.text_encoder.width=16",
    "system.text_encoder.embedding_width=12",
    "engine.batch_size=4",
    "engine.device=cpu",
    "engine.threads=1",
    "engine.log_every=1",
    "engine.sample_rows=2",
    "data.workers=0",
)
ALONE = World(0, 1, 0, 1, torch.device("cpu"))


def settings() -> DAMSMPretrainingConfig:
    config = DAMSMPretrainingConfig(resolution=64, epoch_images=1000)
    config.text_encoder.width = 16
    config.text_encoder.embedding_width = 12
    config.text_encoder.dropout = 0.0
    config.image_encoder.name = "efficientnet_lite0"
    return config


def system(config: DAMSMPretrainingConfig | None = None) -> DAMSMPretraining:
    torch.manual_seed(0)
    return DAMSMPretraining(config or settings(), 20)


def pretrain_tiny(shards: Path, runs: Path, *overrides: str) -> Path:
    done = run_task("pretrain", f"data.path={shards}", f"runs={runs}", *ENCODERS, *overrides)
    assert done.returncode == 0, done.stdout + done.stderr
    return only_run(runs)


def test_it_is_a_retrieval_system_and_generates_nothing() -> None:
    assert isinstance(system(), RetrievalSystem)
    assert not isinstance(system(), TextToImageSystem)
    assert isinstance(tiny_system(), TextToImageSystem)
    assert not isinstance(tiny_system(), RetrievalSystem)


def test_both_encoders_learn_and_the_trunk_stays() -> None:
    encoders = system()
    (phase,) = encoders.phases
    assert phase.updates == ("text_encoder", "image_heads")
    total(phase.loss(encoders.begin(tiny_batch(), torch.empty(4, 0)))).backward()
    for name, parameter in encoders.modules.named_parameters():
        trained = not name.startswith("image_encoder.trunk")
        assert (parameter.grad is not None and bool(parameter.grad.any())) == trained, name


def test_a_batch_is_learnt_by_heart() -> None:
    encoders = system()
    strategy = DDPStrategy(encoders, ALONE)
    batch = tiny_batch()
    for _ in range(30):
        train_step(strategy, batch, torch.empty(4, 0))
    similarities = encoders.match(batch.images, batch.tokens, batch.lengths)
    assert similarities.argmax(1).tolist() == [0, 1, 2, 3]
    assert not similarities.requires_grad


def test_images_and_captions_may_differ_in_number() -> None:
    encoders, batch = system(), tiny_batch(40)
    whole = encoders.match(batch.images, batch.tokens, batch.lengths)
    part = encoders.match(batch.images[35:37], batch.tokens[:5], batch.lengths[:5])
    assert whole.shape == (40, 40)
    torch.testing.assert_close(part, whole[35:37, :5], rtol=1e-4, atol=1e-5)


def test_attention_is_a_map_a_word_and_nothing_behind_the_caption() -> None:
    encoders, batch = system(), tiny_batch()
    maps = encoders.attend(batch.images, batch.tokens, batch.lengths)
    assert maps.shape == (4, 6, 14, 14)
    sums = maps.sum((2, 3))
    expected = (torch.arange(6) < batch.lengths[:, None]).float()
    torch.testing.assert_close(sums, expected)
    other = encoders.attend(batch.images[[1]], batch.tokens[[1]], batch.lengths[[1]])
    torch.testing.assert_close(other[0], maps[1], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("moved", [False, True])
def test_inceptions_batch_statistics_move_where_they_are_to(moved: bool) -> None:
    config = settings()
    config.image_encoder = PretrainedTrunkConfig(trunk="random", batch_statistics=moved)
    encoders = system(config)
    before = {name: value.clone() for name, value in encoders.image_encoder.trunk.named_buffers()}
    weights = [value.clone() for value in encoders.image_encoder.trunk.parameters()]
    train_step(DDPStrategy(encoders, ALONE), tiny_batch(), torch.empty(4, 0))
    after = dict(encoders.image_encoder.trunk.named_buffers())
    means = [name for name in before if name.endswith("running_mean")]
    assert len(means) == 94
    assert all(torch.equal(before[name], after[name]) != moved for name in means)
    kept = zip(weights, encoders.image_encoder.trunk.parameters(), strict=True)
    assert all(torch.equal(old, new) for old, new in kept)


def test_pretrain_writes_encoders_that_training_takes(shards: Path, tmp_path: Path) -> None:
    overrides = ("engine.images=12", "engine.samples_every_images=8")
    run = pretrain_tiny(shards, tmp_path / "a", *overrides)
    assert run.name.startswith("encoders-")
    rows = read_json_lines(run / "scores.jsonl")
    assert [row["images"] for row in rows] == [0, 8, 12]
    assert {(row["better"], row["n"], row["n_real"]) for row in rows} == {("higher", 12, 36)}
    images = {path.name for path in (run / "attention").iterdir()}
    assert images == {f"{images:010d}.png" for images in (0, 8, 12)}

    weights = f"system.text_encoder.weights={run / 'text_encoder.safetensors'}"
    train_tiny(shards, tmp_path / "b", "engine.images=4", weights)
    trained = only_run(tmp_path / "b")
    taken = read_tensors(*read_state(trained, 4).files)
    for name, value in load_file(run / "text_encoder.safetensors").items():
        assert torch.equal(taken[f"text_encoder.{name}"], value)
    vocabulary = Vocabulary.load(shards / "vocabulary.json").sha256
    assert vocabulary_of(run / "text_encoder.safetensors", "key") == vocabulary
    assert read_state(trained, 4).vocabulary == vocabulary

    refused = run_task("generate", f"run={run}")
    assert refused.returncode == 2
    assert "generates no images" in refused.stderr
    told = run_task("report", f"run={run}")
    assert told.returncode == 0, told.stderr
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "Attention after 12 images" in page
    assert "Text and image encoders (DAMSM)" in page


def test_a_resumed_run_keeps_its_rates_and_restarts_to_the_bit(
    shards: Path, tmp_path: Path
) -> None:
    """Epochs of 10 images end between steps of 4; the stop at 12 is inside the second."""
    overrides = ("system.epoch_images=10", "system.learning_rate_decay=0.5")
    straight = pretrain_tiny(shards, tmp_path / "a", *overrides, "engine.images=32")
    pretrain_tiny(shards, tmp_path / "b", *overrides, "engine.images=12")
    resumed = pretrain_tiny(shards, tmp_path / "b", *overrides, "engine.images=32")
    assert losses_of(resumed) == losses_of(straight)
    for name in ("weights.safetensors", "optimizers.safetensors"):
        first, second = (
            load_file(r / f"checkpoints/{32:010d}" / name) for r in (straight, resumed)
        )
        assert first.keys() == second.keys()
        assert all(torch.equal(first[key], second[key]) for key in first)
    # The third epoch began with the sixth of eight steps, and Adam with it.
    steps = {int(value) for key, value in first.items() if key.endswith("/step")}
    assert steps == {3}


def test_the_registry_knows_it() -> None:
    assert isinstance(build_system(settings(), 20), DAMSMPretraining)
