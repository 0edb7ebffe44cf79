"""Each command refuses wrong input in one sentence on stderr, with exit code 2."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from t2i_hpc.config.tasks import TASK_SCHEMAS
from tests.support.training import TINY, only_run, run_module, run_task, train_tiny

COMMANDS = sorted(TASK_SCHEMAS)


def refusal(task: str, *arguments: str) -> str:
    done = run_task(task, *arguments)
    assert done.returncode == 2, done.stdout + done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith(f"t2i_hpc.{task}: ")
    return done.stderr


@pytest.fixture(scope="module")
def trained(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    runs = tmp_path_factory.mktemp("runs")
    train_tiny(shards, runs, "engine.images=4")
    return only_run(runs)


@pytest.mark.parametrize("task", COMMANDS)
def test_help_says_what_and_how(task: str) -> None:
    done = run_module(task, "--help")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"python -m t2i_hpc.{task} key=value")
    assert done.stdout.count(f"t2i_hpc.{task}") >= 3


@pytest.mark.parametrize("task", COMMANDS)
def test_a_misspelt_key(task: str) -> None:
    assert "unknown key 'sheep'" in refusal(task, "sheep=1")


def test_training_without_data(tmp_path: Path) -> None:
    assert "/nowhere" in refusal("train", "data=folder", "data.path=/nowhere", *TINY)
    assert str(tmp_path) in refusal("train", "data=folder", f"data.path={tmp_path}", *TINY)
    assert "data.path" in refusal("train", "data=folder", *TINY)


def test_a_resolution_that_is_not_offered() -> None:
    error = refusal("train", "experiment=demo", "system.resolution=100")
    assert "system.resolution=100 is not offered" in error


def test_a_truncated_tar(shards: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(shards, copy)
    tar = sorted((copy / "train").glob("*.tar"))[1]
    tar.write_bytes(tar.read_bytes()[:-2000])
    error = refusal("train", f"data.path={copy}", f"runs={tmp_path}", *TINY)
    assert tar.name in error
    assert not list(tmp_path.glob("*/config.yaml"))


def test_more_masks_than_blocks(shards: Path, tmp_path: Path) -> None:
    arguments = (f"data.path={shards}", f"runs={tmp_path}", *TINY, "system.masks=9")
    assert "9 masks do not fit" in refusal("train", *arguments)


def test_a_missing_gpu(shards: Path, tmp_path: Path) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    arguments = (f"data.path={shards}", f"runs={tmp_path}", *TINY, "engine.device=cuda")
    assert "device=cpu" in refusal("train", *arguments)


@pytest.mark.parametrize("task", ["evaluate", "generate", "report"])
def test_runs_that_are_none(task: str, tmp_path: Path) -> None:
    assert "run=" in refusal(task)
    assert "/nowhere" in refusal(task, "run=/nowhere")
    assert str(tmp_path) in refusal(task, f"run={tmp_path}")


@pytest.mark.parametrize("task", ["evaluate", "generate"])
def test_checkpoints_that_are_none(task: str, trained: Path) -> None:
    arguments = ["evaluation=demo"] if task == "evaluate" else []
    error = refusal(task, f"run={trained}", "checkpoint=5", *arguments)
    assert "it has: 0, 4" in error


def test_captions_of_unknown_words(trained: Path) -> None:
    error = refusal("generate", f"run={trained}", "captions=[qwertz]")
    assert "no word of the caption 'qwertz'" in error


def test_launch_checks_before_it_starts_anything(tmp_path: Path) -> None:
    assert "did you mean 'train'" in refusal("launch", "task=trian")
    assert "did you mean 'engine.batch_size'" in refusal("launch", "engine.batch_sice=4")
    assert "cluster.processes=0 is too small" in refusal("launch", "cluster.processes=0")
    assert "unknown option" in refusal("launch", "--now")
