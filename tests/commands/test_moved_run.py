"""A run directory that was copied elsewhere, without its encoder's file and its first place."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from t2i_hpc.common.files import read_json_lines
from t2i_hpc.config.compose import compose_config
from t2i_hpc.config.tasks import TrainConfig
from t2i_hpc.data.split import open_vocabulary
from t2i_hpc.evaluate import COMMAND as EVALUATE
from t2i_hpc.generate import COMMAND as GENERATE
from t2i_hpc.launching.plans import check_training
from t2i_hpc.models.text_encoder import LSTMTextEncoder
from t2i_hpc.report import COMMAND as REPORT
from t2i_hpc.reporting.costs import count_cost
from t2i_hpc.runs.layout import list_checkpoints
from t2i_hpc.runs.run_directory import open_run
from t2i_hpc.systems.encoders import checkpoint_follows, reads_initial_weights
from t2i_hpc.train import COMMAND as TRAIN
from tests.support.data import make_shards
from tests.support.training import TINY, only_run, run_task

WORDS = (*TINY, "system.text_encoder.weights=encoders/text.safetensors")
SCORE = (
    "device=cpu",
    "threads=1",
    "evaluation.detector=efficientnet_lite0",
    "evaluation.images=4",
    "evaluation.batch_size=4",
)


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``runs/<run>`` and ``photographs/``; where they were made is gone."""
    began = tmp_path_factory.mktemp("began")
    make_shards(began, count=12, size=64)
    (began / "encoders").mkdir()
    shards = next(path.parent.parent for path in began.rglob("manifest.json"))
    data = compose_config("train", [f"data.path={shards}"], TrainConfig).data
    torch.manual_seed(3)
    encoder = LSTMTextEncoder(open_vocabulary(data).size, 16, 12)
    weights = {key: value.contiguous() for key, value in encoder.state_dict().items()}
    save_file(weights, began / "encoders" / "text.safetensors")
    path = f"data.path={shards.relative_to(began)}"
    done = run_task("train", path, *WORDS, "engine.images=8", cwd=began)
    assert done.returncode == 0, done.stdout + done.stderr
    folder = tmp_path_factory.mktemp("archive")
    shutil.copytree(began / "runs", folder / "runs")
    shutil.copytree(shards, folder / "photographs")
    shutil.rmtree(began)
    return folder


@pytest.fixture
def run(archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The run, copied once more; the current directory is an empty one."""
    shutil.copytree(archive / "runs", tmp_path / "runs")
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return only_run(tmp_path / "runs")


def test_it_generates_from_captions_without_any_data(run: Path) -> None:
    words = ("device=cpu", "columns=1", 'captions=["a red bird"]')
    assert GENERATE.main([f"run={run}", *words]) == 0
    assert list(run.glob("generated/*/pictures.png"))


def test_it_scores_and_reports_with_its_data_named_anew(
    run: Path, archive: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    data = f"data.path={archive / 'photographs'}"
    assert EVALUATE.main([f"run={run}", data, *SCORE]) == 0, capfd.readouterr().err
    assert [row["images"] for row in read_json_lines(run / "scores.jsonl")] == [8]
    assert GENERATE.main([f"run={run}", data, "device=cpu", "columns=1", "rows=2"]) == 0
    assert REPORT.main([f"run={run}"]) == 0
    assert (run / "report.html").is_file()
    assert count_cost(run).gflop_per_image > 0


def test_data_that_is_in_neither_place_is_named(
    run: Path, archive: Path, refusal: Callable[..., str]
) -> None:
    began = json.loads((run / "run.json").read_text())["directory"]
    sentence = refusal(f"run={run}", *SCORE)
    assert f"is not in {began}/" in sentence
    assert f" or {Path.cwd()}/" in sentence
    assert sentence.endswith("name its folder of shards with data.path=\n")
    sentence = refusal(f"images={archive}", f"data.path={archive}", *SCORE)
    assert "evaluation.data=" in sentence


def test_a_relative_path_is_found_in_the_current_directory(
    run: Path, archive: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    named = Path(open_run(run).data.path)
    shutil.copytree(archive / "photographs", tmp_path / "project" / named)
    monkeypatch.chdir(tmp_path / "project")
    assert EVALUATE.main([f"run={run}", *SCORE]) == 0


def test_the_same_command_resumes_it(
    run: Path, archive: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    words = (f"data.path={archive / 'photographs'}", f"runs={run.parent}", *WORDS)
    config = compose_config("train", list(words), TrainConfig)
    assert check_training("train", config, 1) == run
    assert TRAIN.main([*words, "engine.images=16"]) == 0
    out, err = capfd.readouterr()
    assert only_run(run.parent) == run
    assert list_checkpoints(run)[-1] == 16
    told = "encoders/text.safetensors: no such file, the checkpoint holds its weights"
    assert told in out + err
    # Another session in the new place forgets nothing of the file.
    assert check_training("train", config, 1) == run


def test_a_new_run_still_needs_the_file(
    run: Path, archive: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    words = (f"data.path={archive / 'photographs'}", f"runs={run.parent}", *WORDS)
    assert TRAIN.main([*words, "seed=2"]) == 2
    assert "encoders/text.safetensors: there is no such file" in capfd.readouterr().err


def test_weights_are_read_again_after_the_context() -> None:
    with checkpoint_follows():
        assert not reads_initial_weights()
    assert reads_initial_weights()
