"""Tokens mean words by a vocabulary: with another one, nothing resumes, steers or scores."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from t2i_hpc.common.errors import RunError
from t2i_hpc.config.data import DataConfig
from t2i_hpc.config.one_stage_settings import SSAGANConfig
from t2i_hpc.data.format.manifest import Manifest
from t2i_hpc.data.split import Split
from t2i_hpc.data.training_data import open_training_data
from t2i_hpc.systems.encoders import check_text_encoder
from tests.support.data import make_shards
from tests.support.training import TINY, only_run, run_task, train_tiny

SHORT = ("engine.images=8", "engine.checkpoint.every_images=8")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with shards and a run of the tiny system on them."""
    folder = tmp_path_factory.mktemp("trained")
    shards = make_shards(folder, count=12, size=80)
    for split in ("train", "test"):  # of format 2, whose manifest does not name the vocabulary
        replace(Manifest.load(shards / split), format=2, vocabulary="").save()
    train_tiny(shards, folder / "runs", *SHORT)
    return folder


@pytest.fixture
def swapped(trained: Path, tmp_path: Path) -> Path:
    """A copy of it whose vocabulary has the same words in another order."""
    folder = tmp_path / "copy"
    shutil.copytree(trained, folder)
    path = shards_of(folder) / "vocabulary.json"
    content = json.loads(path.read_text())
    content["words"][1:] = content["words"][:0:-1]
    path.write_text(json.dumps(content))
    return folder


def shards_of(folder: Path) -> Path:
    found = [path.parent for path in folder.rglob("vocabulary.json")]
    return next(path for path in found if path.name != "inputs")


def test_a_resume_is_refused_by_name(swapped: Path) -> None:
    run = only_run(swapped / "runs")
    before = (run / "metrics.jsonl").read_bytes()
    arguments = (f"data.path={shards_of(swapped)}", f"runs={swapped / 'runs'}", *TINY, *SHORT)
    done = run_task("train", *arguments, "engine.images=16")
    assert done.returncode == 2, done.stdout + done.stderr
    assert str(run) in done.stderr
    assert "vocabulary" in done.stderr
    assert only_run(swapped / "runs") == run
    assert (run / "metrics.jsonl").read_bytes() == before


def test_a_run_draws_nothing_with_another_vocabulary(swapped: Path) -> None:
    run = only_run(swapped / "runs")
    config = run / "config.yaml"
    lines = config.read_text().splitlines()
    moved = [
        f"  path: {shards_of(swapped)}" if line.startswith("  path:") else line for line in lines
    ]
    config.write_text("\n".join(moved) + "\n")
    arguments = ("generate", f"run={run}", 'captions=["a red circle"]', "device=cpu")
    shutil.move(run / "inputs", swapped / "inputs")
    done = run_task(*arguments)
    assert done.returncode == 2, done.stdout + done.stderr
    assert "vocabulary" in done.stderr
    assert not (run / "generated").exists()
    shutil.move(swapped / "inputs", run / "inputs")  # the vocabulary that a run keeps of its own
    assert run_task(*arguments).returncode == 0


def test_the_vocabulary_is_part_of_the_identity(trained: Path, swapped: Path) -> None:
    data = [
        open_training_data(DataConfig(path=str(shards_of(folder)))) for folder in (trained, swapped)
    ]
    assert data[0].content == data[1].content
    assert data[0].identity != data[1].identity


def test_a_text_encoder_is_refused_with_another_vocabulary(
    trained: Path, swapped: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = only_run(trained / "runs")
    path = tmp_path / "text_encoder.safetensors"
    arguments = ("export", f"run={run}", "what=text_encoder", f"output={path}")
    done = run_task("checkpoints", *arguments)
    assert done.returncode == 0, done.stderr
    same, other = (
        Split.open(DataConfig(path=str(shards_of(folder))), "train").vocabulary.sha256
        for folder in (trained, swapped)
    )
    config = SSAGANConfig()
    config.text_encoder = replace(config.text_encoder, weights=str(path))
    check_text_encoder(config, same)
    with pytest.raises(RunError, match=r"text_encoder\.weights=.*another vocabulary"):
        check_text_encoder(config, other)
    assert not caplog.records
    save_file(load_file(path), path)  # as convert and others write them: no record
    for vocabulary in (same, other):
        check_text_encoder(config, vocabulary)
    (record,) = caplog.records
    assert "does not record the vocabulary" in record.getMessage()


def test_a_run_of_before_is_named(trained: Path, tmp_path: Path) -> None:
    from t2i_hpc.config.compose import from_yaml
    from t2i_hpc.config.tasks import TrainConfig
    from t2i_hpc.runs.run_directory import data_record, refuse_swapped_vocabulary, run_folder

    config = from_yaml(only_run(trained / "runs") / "config.yaml", TrainConfig)
    config = replace(config, runs=str(tmp_path))
    folder, before = run_folder(config, "identity"), run_folder(config, "content")
    record = data_record(config, "content", "vocabulary")
    refuse_swapped_vocabulary(folder, config, record)
    before.mkdir(parents=True)
    (before / "config.yaml").touch()
    with pytest.raises(RunError, match=f"{before} .*rename it to {folder.name}"):
        refuse_swapped_vocabulary(folder, config, record)
