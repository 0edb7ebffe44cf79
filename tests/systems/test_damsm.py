"""Pre-training as a system, and through its door."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file

from t2i_hpc.common.files import read_json_lines
from t2i_hpc.common.step import Matcher, Painter, total
from t2i_hpc.config.system import DAMSMPretrainingConfig
from t2i_hpc.engine.ddp import DDPEngine
from t2i_hpc.engine.world import World
from t2i_hpc.systems import build_system
from t2i_hpc.systems.damsm import DAMSMPretraining
from tests.support.training import only_run, run_door, tiny_batch, tiny_system, train_tiny

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
    "data.workers=0",
)


def system() -> DAMSMPretraining:
    torch.manual_seed(0)
    config = DAMSMPretrainingConfig(resolution=64)
    config.text_encoder.width = 16
    config.text_encoder.embedding_width = 12
    config.text_encoder.dropout = 0.0
    config.image_encoder.name = "efficientnet_lite0"
    return DAMSMPretraining(config, 20)


def test_it_matches_and_does_not_draw() -> None:
    assert isinstance(system(), Matcher)
    assert not isinstance(system(), Painter)
    assert isinstance(tiny_system(), Painter)
    assert not isinstance(tiny_system(), Matcher)


def test_both_encoders_learn_and_the_trunk_stays() -> None:
    encoders = system()
    (phase,) = encoders.phases
    total(phase.loss(encoders.begin(tiny_batch(), torch.empty(4, 0)))).backward()
    for name, parameter in encoders.modules.named_parameters():
        trained = not name.startswith("image_encoder.trunk")
        assert (parameter.grad is not None and bool(parameter.grad.any())) == trained, name


def test_a_batch_is_learnt_by_heart() -> None:
    encoders = system()
    engine = DDPEngine(encoders, World(0, 1, 0, 1, torch.device("cpu")), "fp32")
    batch = tiny_batch()
    for _ in range(30):
        engine.step(batch, torch.empty(4, 0))
    similarities = encoders.match(batch)
    assert similarities.argmax(1).tolist() == [0, 1, 2, 3]
    assert not similarities.requires_grad


def test_the_door_writes_encoders_that_training_takes(shards: Path, tmp_path: Path) -> None:
    words = (f"data.path={shards}", f"runs={tmp_path / 'a'}", *ENCODERS)
    done = run_door("pretrain", *words, "engine.images=12", "engine.samples_every_images=8")
    assert done.returncode == 0, done.stderr
    assert "held-out images find their caption among 12" in done.stdout
    run = only_run(tmp_path / "a")
    assert run.name.startswith("encoders-")
    rows = read_json_lines(run / "scores.jsonl")
    assert [row["images"] for row in rows] == [0, 8, 12]
    assert {row["better"] for row in rows} == {"higher"}

    weights = f"system.text_encoder.weights={run / 'text_encoder.safetensors'}"
    train_tiny(shards, tmp_path / "b", "engine.images=4", weights)
    trained = only_run(tmp_path / "b")
    taken = load_file(trained / "checkpoints/0000000004/weights.safetensors")
    for name, value in load_file(run / "text_encoder.safetensors").items():
        assert torch.equal(taken[f"text_encoder.{name}"], value)

    refused = run_door("generate", f"run={run}")
    assert refused.returncode == 2
    assert "draws no pictures" in refused.stderr


def test_the_registry_knows_it() -> None:
    config = DAMSMPretrainingConfig()
    config.image_encoder.name = "efficientnet_lite0"
    assert isinstance(build_system(config, 20), DAMSMPretraining)
